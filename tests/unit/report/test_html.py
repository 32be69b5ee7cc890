from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markupsafe import escape
from run_folder import CONFIG, SUMMARY, completion, write_lines, write_run

from limbeck.report import write_comparison, write_report
from limbeck.report.charts import MAX_POINTS, drawings, thin, unchanged
from limbeck.report.folder import mask_secrets, read_run, spread
from limbeck.report.results import evaluation_of, held_out, measures

NASTY = (
    """</script><script>document.title="owned"</script><img src=x onerror='document.title="owned"'>"""
    """ & "q" <!-- 'a' {{7*7}}"""
)
VOID = {"meta", "br", "wbr", "img", "input", "link", "path"}


class Outline(HTMLParser):
    """The page's elements and the text of its data script; fails on tags that are closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.seen and self.seen[-1] == ("script", {"type": "application/json", "id": "data"}):
            self.data += data

    def json(self) -> dict:
        return json.loads(self.data)


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_whole_run(tmp_path):
    run = write_run(tmp_path / "demo")
    page = page_of(run)
    outline = Outline(page)
    text = html.unescape(page)
    for expected in (
        "JSD(beta = 0.5)",
        "lmbda 0.5: half dataset, half student",
        "full vocabulary",
        "local model",
        "-70.3%",  # 2.314 to 0.688
        "+29.1 points",  # 0.412 to 0.703
        "15m 13s",
        "the longest prompt has 100 tokens, and 512 for the completion",
        "3 rows dropped: 2 empty",
        "Why is the sky blue?",
        "cpu, 2 threads",
        "40 of 60 logged completions",
    ):
        assert expected in text, expected
    charts = outline.json()["charts"]
    assert [chart["title"] for chart in charts["times"]] == ["Seconds a step", "Speed", "Peak memory"]
    assert len(charts["curves"]) == 10
    assert [(chart["title"], chart["labels"]) for chart in charts["more"]] == [("Support mass", ["teacher", "student"])]
    assert not list(tmp_path.glob("**/*.partial"))


def test_nothing_is_fetched(tmp_path):
    page = page_of(write_run(tmp_path / "demo"))
    outline = Outline(page)
    assert [value for _, attrs in outline.seen for name, value in attrs.items() if name in ("src", "href")] == []
    assert re.findall(r"@import|url\(", page) == []
    assert "default-src 'none'" in page


def test_numbers_of_the_files_are_those_of_the_charts(tmp_path):
    run = write_run(tmp_path / "demo", steps=20, every=5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = {line["step"]: line for line in lines if line["kind"] == "train"}
    held_out = {line["step"]: line for line in lines if line["kind"] == "eval"}
    loss = next(c for c in drawings(read_run(run))["curves"] if c.title == "Loss")
    assert loss.labels == ["all", "dataset's tokens", "student's tokens", "held out"]
    assert loss.dots == [False, False, False, True]
    steps = sorted(train.keys() | held_out.keys())
    assert loss.columns[0] == steps
    for column, side, metric in ((1, train, "loss"), (3, train, "loss/student"), (4, held_out, "eval_loss")):
        for step, value in zip(steps, loss.columns[column], strict=True):
            expected = side.get(step, {}).get(metric)
            assert value == (pytest.approx(expected, rel=1e-5) if expected is not None else None)


@pytest.mark.parametrize(
    "missing", ["config.yaml", "env.json", "summary.json", "metrics.jsonl", "completions.jsonl", None]
)
def test_any_file_may_be_missing(tmp_path, missing):
    run = write_run(tmp_path / "demo")
    for name in [missing] if missing else [path.name for path in run.iterdir()]:
        (run / name).unlink()
    page = page_of(run)
    Outline(page)
    assert f"{missing or 'env.json'} is missing" in page
    assert ("Nothing has been logged yet" in page) == (missing is None)


@pytest.mark.parametrize("junk", ["", "null", "[]", "{", "\x00\xff", '{"method": 3, "evaluation": [], "answers": [1]}'])
def test_damaged_files_do_not_stop_the_page(tmp_path, junk):
    run = write_run(tmp_path / "demo")
    for name in ("config.yaml", "env.json", "summary.json"):
        (run / name).write_text(junk)
    Outline(page_of(run))


def test_torn_last_line_and_junk_in_the_middle(tmp_path):
    run = tmp_path / "demo"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n[3]\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    (run / "completions.jsonl").write_text(json.dumps({"step": 1, "tokens": ["a"]}) + '\n{"step": 2, "tok')
    found = read_run(run)
    assert [row["step"] for row in found.train] == [1, 2]
    assert "1 lines of metrics.jsonl are not JSON objects and were left out" in found.notes
    assert [row["step"] for row in found.completions] == [1]


def test_a_step_logged_twice_counts_once_and_numbers_that_are_not_finite_are_gaps(tmp_path):
    run = tmp_path / "demo"
    run.mkdir()
    rows = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0, "ce": "NaN"},
        {"step": 3, "loss": "NaN", "grad_norm": 1.0},
        {"step": 2, "loss": 5.0, "ce": "NaN"},
    ]
    write_lines(run / "metrics.jsonl", rows)
    curves = {chart.title: chart.columns for chart in drawings(read_run(run))["curves"]}
    assert curves == {"Loss": [[1, 2], [1.0, 5.0]], "Gradient norm": [[3], [1.0]]}


def test_what_users_wrote_stays_text(tmp_path):
    run = write_run(tmp_path / "demo", completions=1)
    summary = json.loads(json.dumps(SUMMARY))
    summary["method"] = dict.fromkeys(SUMMARY["method"], NASTY)
    summary |= {"model": NASTY, "teacher": NASTY, "warnings": [NASTY]}
    summary["choices"] = [{"flag": NASTY, "value": NASTY, "reason": NASTY}]
    summary["answers"] = [dict.fromkeys(("prompt", "teacher", "before", "after"), NASTY)]
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(yaml.safe_dump({NASTY: {NASTY: NASTY}}))
    (run / "env.json").write_text(json.dumps({NASTY: NASTY}))
    row = {"step": 1, "source": NASTY, "dataset": NASTY, "origin": NASTY, "prompt": NASTY, "tokens": [NASTY, "b"]}
    write_lines(run / "completions.jsonl", [row | {"divergence": [1, 2]}])
    write_lines(run / "metrics.jsonl", [{"step": 1, NASTY: 1.0}])
    page = page_of(run)
    outline = Outline(page)
    assert [attrs for tag, attrs in outline.seen if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not any(tag == "img" for tag, _ in outline.seen)
    data = outline.json()
    assert data["completions"][0]["tokens"] == [NASTY, "b"]
    assert data["completions"][0]["prompt"] == NASTY
    assert page.count(str(escape(NASTY))) >= 14


def test_secrets_are_masked(tmp_path):
    run = write_run(tmp_path / "demo")
    assert CONFIG["run"]["hub_token"] not in page_of(run)
    masked = mask_secrets(
        {
            "hub_token": "a",
            "OPENAI_API_KEY": "b",
            "server": ["https://user:pass@host/v1"],
            "max_tokens": 5,
            "tokenizer": "c",
            "teacher_tag_key": "dataset",
            "hf": {"password": "d", "token": None},
        }
    )
    assert masked == {
        "hub_token": "…",
        "OPENAI_API_KEY": "…",
        "server": ["https://…@host/v1"],
        "max_tokens": 5,
        "tokenizer": "c",
        "teacher_tag_key": "dataset",
        "hf": {"password": "…", "token": None},
    }


def test_flat_and_roomed_configurations_read_the_same(tmp_path):
    run = write_run(tmp_path / "demo")
    roomed = read_run(run).flat_config
    (run / "config.yaml").write_text(yaml.safe_dump(roomed))
    assert read_run(run).flat_config == roomed
    assert roomed["learning_rate"] == 1e-5
    Outline(page_of(run))


def test_long_runs_keep_every_spike():
    count = 100_000
    first: list[float | None] = [math.sin(i / 900) for i in range(count)]
    second: list[float | None] = [None if i % 3 else float(i) for i in range(count)]
    first[31_337] = 50.0
    second[31_338] = -50.0
    kept = thin([first, second], MAX_POINTS)
    assert MAX_POINTS / 2 < len(kept) <= MAX_POINTS
    assert {0, 31_337, 31_338, count - 1} <= set(kept)
    assert kept == sorted(set(kept))
    assert thin([first[:MAX_POINTS]], MAX_POINTS) == list(range(MAX_POINTS))


def test_a_large_run_is_a_small_page(tmp_path):
    run = write_run(tmp_path / "demo", steps=6_000, every=1, completions=500)
    data = Outline(page_of(run)).json()
    assert all(len(column) <= MAX_POINTS for chart in data["charts"]["curves"] for column in chart["columns"])
    shown = [row["step"] for row in data["completions"]]
    assert (len(shown), shown[0], shown[-1]) == (40, 12, 6000)


def test_spread():
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    assert spread(101, 5) == [0, 25, 50, 75, 100]
    assert spread(7, 1) == [6]
    assert spread(7, 0) == spread(0, 4) == []


def test_columns_of_another_length_than_the_tokens_are_left_out(tmp_path):
    run = tmp_path / "demo"
    run.mkdir()
    row = {"step": 1, "tokens": ["a", "b"], "divergence": [0.5], "student_logp": None, "teacher_logp": ["NaN", -1.0]}
    write_lines(run / "completions.jsonl", [row])
    shown = Outline(page_of(run)).json()["completions"][0]
    assert (shown["divergence"], shown["student_logp"], shown["teacher_logp"]) == (None, None, [None, -1.0])


def test_a_run_under_way_shows_its_evaluations_so_far(tmp_path):
    run = write_run(tmp_path / "demo")
    summary = {key: value for key, value in SUMMARY.items() if key != "evaluation"}
    (run / "summary.json").write_text(json.dumps(summary))
    forward = measures(evaluation_of(read_run(run)))[0]
    assert (forward.before, forward.after) == ("2.31", "0.7197")  # 0.69 + 1.62 exp(0), 0.69 + 1.62 exp(-4)
    assert "Before and after" in page_of(run)


def test_measures_of_before_and_after():
    rows = measures(
        {
            "before": {"eval_forward_kl": 2.0, "top1_agreement": 0.5, "ce": 1.0, "mystery": -1.0, "tokens": 9},
            "after": {"forward_kl": 0.5, "top1_agreement": 0.4, "ce": 1.0, "mystery": -3.0, "reverse_kl": math.nan},
        }
    )
    assert [(row.name.split(" (")[0], row.before, row.after, row.change, row.verdict) for row in rows] == [
        ("Forward KL", "2", "0.5", "-75.0%", "better"),
        ("Reverse KL", "-", "nan", "-", ""),
        ("Top-1 agreement with the teacher", "50.0%", "40.0%", "-10.0 points", "worse"),
        ("Cross-entropy on the data", "1", "1", "0.0%", ""),
        ("mystery", "-1", "-3", "-2", ""),
    ]
    assert measures(None) == measures({}) == measures([]) == []


def test_of_rewards_the_means_are_shown_and_of_a_policy_no_loss():
    side = {"loss": 1.0, "ce": 1.0000001, "reward": 0.5, "reward_std": 0.1, "reward_missing": 0.0}
    side |= {"rewards/exact/mean": 0.25, "rewards/exact/std": 0.1, "rewards/exact/missing": 0.0}
    before = {f"eval_on_policy_{key}": value for key, value in side.items()}
    rows = measures({"before": before, "after": before | {"eval_on_policy_rewards/exact/mean": 0.5}})
    assert [(row.name, row.on_policy, row.verdict) for row in rows] == [
        ("Cross-entropy", True, ""),
        ("Reward", True, ""),
        ("Reward exact", True, "better"),
    ]


CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)


PROBE = """<script>addEventListener("load", () => {
  const all = (query) => [...document.querySelectorAll(query)], charts = all(".chart").length;
  const drawn = () => all(".chart canvas").filter((c) =>
    new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer).some((p) => p !== 0)).length;
  const style = (node) => node && getComputedStyle(node).backgroundColor;
  all("details.fold").forEach((fold) => fold.open = true);
  const until = (ready, then, n = 150) => ready() || !n ? then() : setTimeout(until, 100, ready, then, n - 1);
  until(() => drawn() === charts, () => {
    for (const over of all(".chart .u-over")) {
      const box = over.getBoundingClientRect(), at = {clientX: box.left + box.width / 2, clientY: box.top + 20};
      over.dispatchEvent(new MouseEvent("mouseenter", at));
      over.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, ...at}));
    }
    setTimeout(() => {
      const rows = (figure) => [...figure.querySelectorAll(".u-legend .u-series")].map((row) => row.textContent);
      const legends = all(".chart").map(rows);
      const span = document.querySelector("#completions .text span");
      span?.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
      const found = {ready: document.documentElement.dataset.ready, errors: window.failures, charts, drawn: drawn(),
        title: document.title, legends, tip: document.getElementById("tip").textContent, colour: style(span),
        here: all("#tip .here").map((node) => node.textContent), page: style(document.body),
        wider: document.documentElement.scrollWidth - document.documentElement.clientWidth, width: innerWidth,
        contents: all(".toc a").map((a) => [a.textContent, !!document.getElementById(a.hash.slice(1))]),
        small: all("summary, button, .tools label, .toc a").filter((n) => 0 < n.offsetHeight && n.offsetHeight < 28)
          .length};
      const link = all(".toc a").find((a) => a.textContent === "Other metrics") ?? all(".toc a")[1];
      const place = link && document.getElementById(link.hash.slice(1)), top = (n) => n.getBoundingClientRect().top;
      if (place?.matches("details")) place.open = false;
      link?.click();
      dispatchEvent(new Event("scroll"));  // without a window no frames come, and with them no event
      const bar = document.querySelector(".toc"), at = link?.getBoundingClientRect();
      if (link) found.jump = {open: place.open, bar: top(bar), below: top(place) - top(bar) - bar.offsetHeight,
        marked: all(".toc a[aria-current]").map((a) => a.textContent), inside: at.left >= 0 && at.right <= innerWidth};
      parent.postMessage("PROBE" + JSON.stringify(found) + "END", "*");
    }, 300);
  });
});</script>"""
WATCH = """<script>window.failures = []; onerror = (m) => failures.push(m);
  console.error = console.warn = (...all) => failures.push(all.join(" "));
  document.addEventListener("securitypolicyviolation", (e) => failures.push(e.violatedDirective));</script>"""


FRAME = """<meta name="color-scheme" content="light dark"><iframe src="probed.html" width="{width}" height="900"
style="border: 0"></iframe><script>onmessage = (e) => document.body.replaceChildren(e.data);</script>"""


def probe(page: Path, tmp_path: Path, *more: str, width: int = 1000) -> dict:
    """What a browser makes of the page: its errors, its charts, what pointing at things shows. The page lies in a
    frame, since a window has at least 500 pixels."""
    text = page.read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("<style>", WATCH + "<style>", 1).replace("</body>", PROBE + "</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), *more, f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()]
    found: dict = {}
    for _ in range(5):  # the virtual clock now and then runs out before the first frame, and then nothing is drawn
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        said = re.search(r"PROBE(\{.*\})END", html.unescape(dom))
        assert said, dom[-2000:]
        found = json.loads(said[1])
        if found["drawn"]:
            break
    return found


CONTENTS = [
    *("Results", "Answers", "Curves", "Time", "Other metrics", "Spread", "Disagreement", "Completions", "Warnings"),
    *("Chosen for you", "Configuration", "Environment"),
]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH")


@needs_browser
@pytest.mark.parametrize("width", [360, 800, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(tmp_path, width, scheme):
    run = write_run(tmp_path / "demo")
    write_lines(run / "completions.jsonl", [completion_with_nasty_text(), completion_with_nasty_text()])
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    found = probe(write_report(run), tmp_path, f"--window-size={width + 20},900", *dark, width=width)
    assert found["width"] == width
    assert found["small"] == 0
    assert found["ready"] == "yes"
    assert found["errors"] == []
    assert found["charts"] == found["drawn"] == 16  # curves, times, the fold's one, and the two maps
    assert found["title"] == "demo · Limbeck report"
    assert found["page"] == ("rgb(21, 23, 27)" if scheme == "dark" else "rgb(247, 247, 245)")
    assert found["wider"] <= 0
    assert [name for name, leads in found["contents"] if leads] == CONTENTS
    below = found["jump"].pop("below")
    assert found["jump"] == {"open": True, "bar": 0, "marked": ["Other metrics"], "inside": True}
    assert 0 <= below < 40  # the part begins under the bar, not behind it
    assert "0.25" in found["tip"]
    assert "50.0%" in found["tip"]
    assert "teacher would say" in found["tip"]
    (here,) = found["here"]  # the token that stands there is marked among the favourites
    assert here.endswith("60.0%")
    # every curve shows a step near the middle, which is pointed at
    assert all(100 <= float(legend[0].removeprefix("step")) <= 200 for legend in found["legends"][:10])
    step = float(found["legends"][0][0].removeprefix("step"))
    at = {row["step"]: row["forward_kl"] for row in read_run(run).train}[step]
    assert float(found["legends"][1][1].removeprefix("train")) == pytest.approx(at, rel=1e-3)


def rewritten(run: Path, change: Callable[[dict], dict], **summary: object) -> Path:
    """The run with other lines of metrics, and more in its summary."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [change(line) for line in lines])
    (run / "summary.json").write_text(json.dumps(SUMMARY | summary))
    return run


def on_policy(line: dict) -> dict:
    own = {f"eval_on_policy_{key.removeprefix('eval_')}": value for key, value in line.items() if key[:5] == "eval_"}
    return line | own


def policy(line: dict) -> dict:
    """OPD-RL: rewards and advantages, no divergence."""
    kept = {key: value for key, value in line.items() if "kl" not in key and "agreement" not in key}
    more = {"reward": 0.1, "reward_std": 0.0, "advantage/task": 0.2, "advantage/teacher": line["step"] / 9}
    names = ("a_reward_with_a_very_long_name_that_its_plugin_gave_it", "format")
    more |= {f"rewards/{name}/{part}": 0.5 for name in names for part in ("mean", "std", "failed", "missing")}
    return kept | (more if line["kind"] == "train" else {})


def plain(line: dict) -> dict:
    return {key: value for key, value in line.items() if key in ("step", "kind", "loss", "ce", "grad_norm", "eval_ce")}


COLLAPSE = {"what": "the student collapses: truncated_share was 1, 1, 1", "fix": "raise --max_completion_length"}
KINDS: dict[str, tuple[Callable[[dict], dict], dict[str, object], str]] = {
    "on-policy": (on_policy, {"resumed_at": [120]}, "resumed at step"),
    "policy": (policy, {"stopped_by": "max_time"}, "paused: --max_time was over"),
    "sft": (plain, {"teacher": None, "stopped_by": "end"}, "Cross-entropy"),
    "collapsed": (on_policy, {"stopped_by": "collapse", "collapse": COLLAPSE}, "The student collapses"),
}


@needs_browser
@pytest.mark.parametrize("kind", [*KINDS, "comparison"])
def test_every_kind_of_page_fits_a_phone(tmp_path, kind):
    if kind == "comparison":
        runs = [write_run(tmp_path / f"a-run-with-a-long-name-{i}", steps=20, every=5, seed=i) for i in range(3)]
        page, said = write_comparison(runs, tmp_path / "c.html"), "3 runs compared"
    else:
        change, summary, said = KINDS[kind]
        page = write_report(rewritten(write_run(tmp_path / "run", steps=20, every=5), change, **summary))
    assert said in page.read_text()
    found = probe(page, tmp_path, width=390)
    assert found["errors"] == []
    assert found["charts"] == found["drawn"] > 3
    assert found["wider"] <= 0
    assert len(found["contents"]) > 1 and all(leads for _, leads in found["contents"])


def test_own_answers_have_a_part_of_the_table_and_their_own_names():
    sides = {"forward_kl": 2.0, "ce": 1.0, "tokens": 9, "refused": 0, "teacher_kl": 5.0}
    own = {f"on_policy_{key}": value / 2 for key, value in sides.items()}
    evaluation = {"before": {f"eval_{k}": v for k, v in (sides | own).items()}, "after": own}
    rows = measures(evaluation)
    assert [(row.title, row.before, row.after, row.on_policy) for row in rows] == [
        ("Forward KL (teacher ‖ student)", "2", "-", False),
        ("Cross-entropy on the data", "1", "-", False),
        ("Forward KL (teacher ‖ student), on its own answers", "1", "1", True),
        ("Cross-entropy, on its own answers", "0.5", "0.5", True),
        ("Teacher's k3 estimate of the reverse KL, on its own answers", "2.5", "2.5", True),
    ]
    assert held_out(evaluation) == "9 tokens"


def test_a_part_of_the_loss_that_is_all_of_it_is_drawn_once(tmp_path):
    def whole(line: dict) -> dict:
        return {**line, "loss/dataset": line["loss"], "loss/student": None} if line["kind"] == "train" else line

    found = drawings(read_run(rewritten(write_run(tmp_path / "demo"), whole)))
    assert found["curves"][0].labels == ["all", "held out"]
    assert "Loss" not in [chart.title for chart in found["more"]]


def test_what_never_changes_is_said_and_not_drawn(tmp_path):
    run = rewritten(write_run(tmp_path / "demo"), policy)
    found = drawings(read_run(run))
    reward = next(chart for chart in found["curves"] if chart.title == "Reward")
    assert reward.labels == ["weighted sum", "a_reward_with_a_very_long_name_that_its_plugin_gave_it", "format"]
    same = dict(unchanged(read_run(run)))
    assert same["rewards/format/std"] == 0.5
    assert same["reward_std"] == 0.0
    drawn = {label for charts in found.values() for chart in charts for label in chart.labels}
    assert not drawn & {"std", "failed", "missing"}
    assert "<code>reward_std</code> 0" in page_of(run)


@needs_browser
def test_advantages_and_comparisons_in_a_browser(tmp_path):
    run = write_run(tmp_path / "one")
    row = completion_with_nasty_text() | {"divergence": None, "advantage": [-2.0, 1.0], "logratio": [-2.0, 1.0]}
    row["teacher_logp"] = [-10.0, -1.0]
    write_lines(run / "completions.jsonl", [row])
    found = probe(write_report(run), tmp_path)
    assert found["errors"] == []
    assert found["colour"].startswith("rgba(205, 45, 35")  # the first token is made less likely
    assert "advantage-2" in found["tip"]
    assert "log p, teacher-10<0.1%" in found["tip"]
    page = write_comparison([run, write_run(tmp_path / "two", seed=5)], tmp_path / "c.html")
    found = probe(page, tmp_path)
    assert found["errors"] == []
    assert found["charts"] == found["drawn"] > 15
    assert all(len(legend) == 3 for legend in found["legends"])  # the step, and a line a run


def test_completions_without_numbers_have_no_scale(tmp_path):
    run = write_run(tmp_path / "demo")
    write_lines(run / "completions.jsonl", [completion_with_nasty_text() | {"divergence": None}])
    page = page_of(run)
    assert 'class="scale " hidden' in page
    assert "The deeper a token" not in page


def completion_with_nasty_text() -> dict:
    row = {"step": 1, "source": "student", "prompt": NASTY, "tokens": [NASTY, "b"], "divergence": [0.25, 0.0]}
    tops = {"teacher_top": [[[NASTY, 0.6], [" c", 0.3]]] * 2, "student_top": [[["x", 0.5]]] * 2}
    return row | tops | {"teacher_logp": [math.log(0.5), -1.0], "student_logp": [-1.0, -1.0], "truncated": False}


def test_the_generator_makes_what_the_contract_says():
    import random

    row = completion(3, random.Random(0))
    assert {len(row[key]) for key in ("tokens", "divergence", "student_logp", "teacher_logp")} == {61}
