"""Teachers in this process: every kind of question against a float64 log-softmax, and views of the student."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.support import make_model, make_tokenizer

from limbeck.data.collate import collate
from limbeck.data.formats import Example
from limbeck.data.render import Rendered
from limbeck.losses import divergence, linear_divergence, linear_topk_divergence
from limbeck.models import model_head
from limbeck.signal import Ask, Hidden, Sample, TopK
from limbeck.teachers import LocalTeacher, RoutedTeacher, Shadow

TOKENIZER = make_tokenizer()
VALID = len(TOKENIZER)
FULL = Ask("hidden")


def sample(seed: int, tag: str = "a") -> Sample:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(VALID, (12 + seed % 5,), generator=random).tolist()
    tokens = Rendered(tuple(ids[:5]), tuple(ids[5:]), tuple(i % 3 != 1 for i in range(len(ids) - 5)))
    return Sample(tokens, "dataset", Example("x", "y", {"dataset": tag}, f"row:{seed}"))


BATCHES = [[sample(0), sample(1, "b")], [sample(2, "b")], [sample(3), sample(4, "c"), sample(5)]]


def local(model, ask: Ask, **more) -> LocalTeacher:
    return LocalTeacher(model, name="teacher", ask=ask, valid=VALID, pad_id=0, **more)


def teacher_model(seed: int = 2):
    return make_model(TOKENIZER, seed=seed, layers=3, surplus=5, hidden=48, tied=False).eval()


def reference(model, s: Sample, temperature: float = 1.0) -> torch.Tensor:
    """log p [N, V] over the valid ids, float64."""
    batch = collate([s.tokens], 0)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=batch.input_ids).logits[0, batch.cols, :VALID]
    return torch.log_softmax(logits / temperature, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_kind_of_question_has_the_same_answer(temperature: float) -> None:
    model, k = teacher_model(), 6
    generator = torch.Generator().manual_seed(7)
    named = [[torch.randint(VALID, (s.n_active, k), generator=generator) for s in batch] for batch in BATCHES]
    asks = (
        Ask("topk", k, temperature),
        Ask("named", 0, temperature, named_k=k),
        Ask("union", k, temperature, named_k=k),
    )
    for ask in asks:
        answers = local(model, ask).score(BATCHES, named if ask.names else None)
        for b, batch in enumerate(BATCHES):
            for i, s in enumerate(batch):
                signal = answers[b][i]
                assert isinstance(signal, TopK) and signal.log_tail is not None
                logp = reference(model, s, temperature)
                best = logp.topk(k).indices if ask.k else torch.empty(s.n_active, 0, dtype=torch.long)
                wanted = torch.cat([best, named[b][i]], -1) if ask.names else best
                for n in range(s.n_active):
                    ids = list(dict.fromkeys(wanted[n].tolist()))  # each once, in order
                    present = signal.logprobs[n].isfinite()
                    assert signal.ids[n][present].tolist() == ids
                    torch.testing.assert_close(signal.logprobs[n][present].double(), logp[n, ids], atol=1e-4, rtol=0)
                    off = logp[n].exp().sum() - logp[n, ids].exp().sum()
                    assert signal.log_tail[n].exp().item() == pytest.approx(off.item(), abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_hidden_states_full_support_and_named_ids_give_one_divergence(beta: float) -> None:
    student, model = make_model(TOKENIZER, seed=1), teacher_model()
    every = [[torch.arange(VALID).repeat(s.n_active, 1).flip(-1) for s in batch] for batch in BATCHES]
    full = local(model, FULL).score(BATCHES)
    top = local(model, Ask("topk", VALID)).score(BATCHES)
    named = local(model, Ask("named", named_k=VALID)).score(BATCHES, every)
    for b, batch in enumerate(BATCHES):
        for i, s in enumerate(batch):
            places = collate([s.tokens], 0)
            with torch.no_grad():
                hidden = student.model(input_ids=places.input_ids).last_hidden_state[0, places.cols]
            head, signal = model_head(student, VALID), full[b][i]
            assert isinstance(signal, Hidden)
            found = [linear_divergence(hidden, head, signal.hidden, signal.head, beta=beta, return_stats=True)[1]]
            for t in (top[b][i], named[b][i]):
                assert isinstance(t, TopK)
                options = {"beta": beta, "teacher_log_tail": t.log_tail, "return_stats": True}
                found.append(linear_topk_divergence(hidden, head, t.logprobs, t.ids, **options)[1])
            exact = divergence(reference(student, s), reference(model, s), beta=beta).float()
            for stats in found:
                torch.testing.assert_close(stats["divergence"], exact, atol=1e-4, rtol=0)


def move(model, by: float = 0.1) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)


def test_the_live_student_answers_as_it_is_and_keeps_what_it_said() -> None:
    student = make_model(TOKENIZER, seed=1)
    teacher = local(student, FULL, moves=True)
    before = teacher.score(BATCHES)[0][0]
    assert isinstance(before, Hidden)
    logits = before.head.logits(before.hidden).clone()
    move(student)
    after = teacher.score(BATCHES)[0][0]
    assert isinstance(after, Hidden)
    assert before.head.logits(before.hidden).equal(logits)  # learnt from over several steps: it must not drift
    torch.testing.assert_close(
        torch.log_softmax(after.head.logits(after.hidden).double(), -1),
        reference(student, BATCHES[0][0]),
        atol=1e-4,
        rtol=0,
    )


def test_a_frozen_copy_stays_and_the_student_comes_back() -> None:
    student = make_model(TOKENIZER, seed=1)
    teacher = local(student, FULL, shadow=Shadow(student))
    first = teacher.score(BATCHES)[0][0]
    move(student)
    own = {name: p.clone() for name, p in student.named_parameters()}
    teacher.follow()
    again = teacher.score(BATCHES)[0][0]
    assert isinstance(first, Hidden) and isinstance(again, Hidden)
    assert again.hidden.equal(first.hidden)
    assert again.head.weight.equal(first.head.weight)
    assert all(p.equal(own[name]) for name, p in student.named_parameters())


def test_an_average_over_the_steps_by_its_closed_form() -> None:
    student, decay = make_model(TOKENIZER, seed=1).double(), 0.75
    start = {name: p.detach().clone() for name, p in student.named_parameters()}
    shadow = Shadow(student, decay)
    for _ in range(3):
        move(student, 1.0)
        shadow.follow()
    # start + (1 - d) (d^2 * 1 + d * 2 + 3) for weights that are start + 1, + 2, + 3
    shift = (1 - decay) * (decay**2 + 2 * decay + 3)
    for name, average in shadow.weights.items():
        torch.testing.assert_close(average, start[name] + shift)
    other = Shadow(student, decay)
    other.restore(shadow.state())
    assert all(other.weights[name].equal(average) for name, average in shadow.weights.items())


def test_several_teachers_answer_for_their_own_rows_in_order() -> None:
    models = [teacher_model(2), teacher_model(9)]
    each = [local(model, Ask("topk", 4)) for model in models]
    for number, teacher in enumerate(each):
        teacher.name = f"teacher {number}"
    routed = RoutedTeacher([(["a"], each[0]), (["b", "c"], each[1])], "dataset")
    answers = routed.score(BATCHES)
    for batch, signals in zip(BATCHES, answers, strict=True):
        for s, signal in zip(batch, signals, strict=True):
            owner = 0 if s.example.columns["dataset"] == "a" else 1
            assert routed.who(s) == f"teacher {owner}"
            assert isinstance(signal, TopK)
            best = reference(models[owner], s).topk(4)
            assert signal.ids.equal(best.indices)
            torch.testing.assert_close(signal.logprobs.double(), best.values, atol=1e-4, rtol=0)
    routed.close()


def told(seed: int, prompt: tuple[int, ...]) -> Sample:
    s = sample(seed)
    return replace(s, tokens=replace(s.tokens, teacher=replace(s.tokens, prompt_ids=prompt)))


def test_what_the_privileged_prompt_does_by_the_plain_formula() -> None:
    """KL(with || without) in float64 on full logits; zero, to the bit, where both prompts are the same."""
    model = teacher_model().double()
    teacher = local(model, Ask("sampled", temperature=0.7))
    s = told(0, (9, 8, 7, 6, 5, 4, 3))
    with_, without = (reference(model, replace(s, tokens=tokens), 0.7) for tokens in (s.told, s.tokens))
    wanted = (with_.exp() * (with_ - without)).sum(-1)
    assert wanted.min() > 1e-4
    found = teacher.privileged_kl(s)
    assert found is not None
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    same = local(teacher_model(), FULL).privileged_kl(told(1, sample(1).tokens.prompt_ids))
    assert same is not None and same.shape == (sample(1).n_active,) and not same.any()
    assert teacher.privileged_kl(sample(0)) is None
    routed = RoutedTeacher([(["a"], local(teacher_model(5), FULL)), (["b"], local(model, FULL))], "dataset")
    own = replace(s, example=sample(0, "b").example)
    torch.testing.assert_close(routed.privileged_kl(own), local(model, FULL).privileged_kl(own), rtol=0, atol=0)
