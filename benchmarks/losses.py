"""Time (CPU seconds on a CPU) and peak memory of one loss, forward and backward, against plainer ways.

    OMP_NUM_THREADS=1 python benchmarks/losses.py --vocab 151936 --student 1024 --teacher 2048 --tokens 1024 --beta 1

Each line runs in a process of its own; memory is the peak over what the inputs take (Linux; torch's count on CUDA).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch
import torch.nn.functional as F

from limbeck.losses import linear_divergence, linear_topk, linear_topk_divergence


def ours(o, hs, ws, ht, wt):
    linear_divergence(hs, ws, ht, wt, beta=o.beta).backward()


def ours_with_stats(o, hs, ws, ht, wt):
    linear_divergence(hs, ws, ht, wt, beta=o.beta, return_stats=True)[0].backward()


def topk(mode):
    def run(o, hs, ws, ht, wt, *signal):
        logprobs, ids, tail = signal
        linear_topk_divergence(hs, ws, logprobs, ids, beta=o.beta, mode=mode, teacher_log_tail=tail).backward()

    return run


def full_logits(o, hs, ws, ht, wt):
    lq = torch.log_softmax((hs @ ws.t()).float(), -1)
    with torch.no_grad():
        lp = torch.log_softmax((ht @ wt.t()).float(), -1)
    if o.beta in (0.0, 1.0):
        target, source = (lq, lp) if o.beta == 0.0 else (lp, lq)
        F.kl_div(target, source, reduction="sum", log_target=True).backward()
        return
    beta = torch.tensor(o.beta)
    log_m = torch.logsumexp(torch.stack([lq + torch.log1p(-beta), lp + torch.log(beta)]), 0)
    left = F.kl_div(log_m, lp, reduction="sum", log_target=True)
    right = F.kl_div(log_m, lq, reduction="sum", log_target=True)
    (beta * left + (1 - beta) * right).backward()


@torch.no_grad()
def matmuls(o, hs, ws, ht, wt):
    """Both logits, the gradients of the hidden states and of a trainable head, in chunks of 256 rows."""
    d_hidden, d_weight = torch.zeros_like(hs), torch.zeros_like(ws) if ws.requires_grad else None
    z, t = (torch.empty(256, o.vocab, dtype=hs.dtype, device=hs.device) for _ in range(2))
    for start in range(0, o.tokens, 256):
        h, n = hs[start : start + 256], min(256, o.tokens - start)
        torch.mm(h, ws.t(), out=z[:n])
        torch.mm(ht[start : start + 256], wt.t(), out=t[:n])
        torch.mm(z[:n], ws, out=d_hidden[start : start + 256])
        if d_weight is not None:
            d_weight.addmm_(z[:n].t(), h)


RUNS = {
    "bare matmuls": matmuls,
    "ours": ours,
    "ours, with statistics": ours_with_stats,
    "full logits, autograd": full_logits,
    "ours, top-k tail": topk("tail"),
    "ours, top-k renorm": topk("renorm"),
}


def measure(options, name, results):
    o, cuda = options, options.device == "cuda"
    torch.manual_seed(0)
    dtype = getattr(torch, o.dtype)

    def weight(width):
        return torch.randn(o.vocab, width, device=o.device).mul_(2 * width**-0.5).to(dtype)

    ws, wt = weight(o.student), weight(o.teacher)
    hs, ht = (torch.randn(o.tokens, width, device=o.device).to(dtype) for width in (o.student, o.teacher))
    signal = linear_topk(ht, wt, o.topk) if "top-k" in name else ()
    hs.requires_grad_()
    ws.requires_grad_(not o.frozen)
    clock = time.perf_counter if cuda else time.process_time
    best, start_rss = float("inf"), _rss()
    for _ in range(o.repeat):
        hs.grad = ws.grad = None
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = clock()
        RUNS[name](o, hs, ws, ht, wt, *signal)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, clock() - began)
    peak = torch.cuda.max_memory_allocated() - before if cuda else _peak() - start_rss
    results.put((best, peak))


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--student", type=int, default=576, help="hidden size of the student")
    parser.add_argument("--teacher", type=int, default=960, help="hidden size of the teacher")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--frozen", action="store_true", help="no gradient for the student's head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    base = None
    print(
        f"{'':24}{'seconds':>9}{'ratio':>8}{'peak MB':>9}   "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name in options.only:
        results = context.Queue()
        child = context.Process(target=measure, args=(options, name, results))
        child.start()
        seconds, peak = results.get()
        child.join()
        base = base or seconds
        print(f"{name:24}{seconds:9.3f}{seconds / base:8.2f}{peak / 1e6:9.0f}", flush=True)


if __name__ == "__main__":
    main()
