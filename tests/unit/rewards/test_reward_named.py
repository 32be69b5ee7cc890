"""The named rewards, by hand and by their papers' formulas."""

from __future__ import annotations

import json
import math
import sys
import types

import pytest

from limbeck.errors import ConfigError
from limbeck.rewards import RewardOptions, named_rewards
from limbeck.rewards.named import answer_text, gold_text


def make(name, **options):
    return named_rewards([name], options=RewardOptions(**options))[0].function


def ids(*lengths):
    return [[7] * n for n in lengths]


# ---------------------------------------------------------------- accuracy

EQUAL = [
    ("42", "42"),
    ("42", "The answer is 42."),
    ("42", "I first thought 41, but it is 42"),
    ("42", "<think>41</think><answer>42</answer>"),
    ("42", "<think>so 43? no</think>\nIt is 42"),
    ("\\boxed{42}", "\\boxed{42} apples"),
    ("A worked solution with 3 steps.\n#### 1,000", "1000"),
    ("Thus $x=3$ and the sum is \\boxed{5}.", "$x = 5$"),
    ("<answer>7</answer>", "7"),
    ("\\frac{1}{2}", "0.5"),
    ("$\\frac12$", "50%"),
    ("1e5", "100000"),
    ("3x+1", "$1+3x$"),
    ("x^2+2x+1", "\\boxed{(x+1)^2}"),
    ("2 \\pi", "<answer>2\\pi</answer>"),
    ("(1,2)", "$(1, 2)$"),
    ("$\\{1,2\\}$", "\\boxed{\\{2,1\\}}"),
    ("Paris", "<answer>paris.</answer>"),
    ("Paris", "\\boxed{\\text{Paris}}"),
    ("B", "\\boxed{B}"),
    (0, "0"),
    (0.5, "$\\frac{1}{2}$"),
]
UNEQUAL = [
    ("42", "41"),
    ("42", ""),
    ("42", "I do not know"),
    ("42", "<answer>41</answer> 42"),
    ("42", "<think>it is 42, or"),
    ("42", "<think>it is 42</think> I cannot say"),
    ("3x+1", "3"),
    ("\\sqrt{2}", "2"),
    ("-4", "4"),
    ("(1,2)", "(1,3)"),
    ("0.333", "1/3"),
    ("Paris", "\\boxed{Pairs}"),  # as LaTeX both are the product of the same five letters
    ("\u662f", "\u5426"),
]


def test_accuracy_by_cases():
    golds, texts = zip(*EQUAL, *UNEQUAL, strict=True)
    values = make("accuracy")(list(texts), solution=list(golds))
    wanted = [1.0] * len(EQUAL) + [0.0] * len(UNEQUAL)
    wrong = [(g, t, v) for g, t, v, w in zip(golds, texts, values, wanted, strict=True) if v != w]
    assert not wrong


def test_accuracy_takes_solution_before_answer_and_leaves_rows_without_either():
    values = make("accuracy")(["1", "1", "1", "1"], solution=["1", None, None, ""], answer=["2", "1", None, None])
    assert values == [1.0, 1.0, None, None]


def test_answer_and_gold_texts():
    assert answer_text("<answer>a</answer> x <answer>\nb </answer>") == "b"
    assert answer_text("t</think> c ") == "c"
    assert answer_text(" d ") == "d"
    assert answer_text("<think> e") == ""
    assert gold_text("f\n#### 5") == "5"
    assert gold_text(None) == ""
    assert gold_text(0) == "0"


# ---------------------------------------------------------------- the others


def test_format_is_the_whole_completion_and_each_tag_once():
    good = ["<think>a</think><answer>b</answer>", " <think>\na\n</think>\n\n<answer>b\nc</answer>\n"]
    bad = [
        "a <think>a</think><answer>b</answer>",
        "<think>a</think><answer>b</answer>c",
        "<think>a</think>x<answer>b</answer>",
        "<think>a</think><answer>b",
        "<answer>b</answer><think>a</think>",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<think>a<think>b</think></think><answer>c</answer>",
        "a</think><answer>b</answer>",
        "",
    ]
    assert make("format")(good + bad) == [1.0] * len(good) + [0.0] * len(bad)


def test_cosine_is_the_papers_formula():
    """arXiv 2502.03373: CosFn(t, T, min, max) = min + (max - min) (1 + cos(t pi / T)) / 2, from r_0 to r_L."""
    reward = make("cosine", cosine_max_len=100)
    texts, lengths = ["1", "1", "1", "1", "2", "2", "2", "2"], [0, 25, 50, 100, 0, 25, 50, 300]
    values = reward(texts, completion_ids=ids(*lengths), solution=["1"] * 8)

    def cosfn(t, T, low, high):
        return low + 0.5 * (high - low) * (1 + math.cos(t * math.pi / T))

    right = [cosfn(t, 100, 0.5, 1.0) for t in lengths[:4]]
    wrong = [cosfn(t, 100, 0.0, -0.5) for t in [0, 25, 50, 100]]  # 300 stays where 100 is
    assert values == pytest.approx(right + wrong, abs=1e-12)
    assert values[0] == 1.0 and values[2] == pytest.approx(0.75) and values[4] == -0.5 and values[6] == -0.25


def test_cosine_takes_its_flags_and_the_run_s_length():
    reward = make(
        "cosine",
        max_completion_length=10,
        cosine_min_len_value_correct=2,
        cosine_max_len_value_correct=4,
        cosine_min_len_value_wrong=-8,
        cosine_max_len_value_wrong=-6,
    )
    values = reward(["1", "1", "2", "2", "1"], ids(0, 10, 0, 10, 5), answer=["1", "1", "1", "1", None])
    assert values == [2, 4, -8, -6, None]


def test_repetition():
    reward = make("repetition")
    # a b c a b c a b: trigrams abc bca cab abc bca cab: 3 of 6 stood before
    assert reward(["a b c A b c a b", "a b c d", "a b", ""]) == [-0.5, 0.0, 0.0, 0.0]
    # bigrams of x x x x: 2 of 3 stood before
    assert make("repetition", repetition_n_grams=2, repetition_max_penalty=-3)(["x x x x"]) == pytest.approx([-2.0])
    with pytest.raises(ConfigError, match="repetition_max_penalty"):
        make("repetition", repetition_max_penalty=1)


def test_soft_overlong_is_dapos_equation_13():
    reward = make("soft_overlong", soft_max_length=20, soft_cache_length=5)
    lengths = [0, 15, 16, 18, 20, 21, 400]
    by_hand = [0.0, 0.0, -0.2, -0.6, -1.0, -1.0, -1.0]
    assert reward(ids(*lengths)) == pytest.approx(by_hand)
    assert make("soft_overlong", max_completion_length=10, soft_cache_length=4)(ids(6, 8)) == pytest.approx([0, -0.5])


@pytest.mark.parametrize("cached", [None, 0, 20, 30])
def test_soft_overlong_without_a_cache_is_refused(cached):
    with pytest.raises(ConfigError, match="soft_cache_length") as error:
        make("soft_overlong", soft_max_length=20, soft_cache_length=cached)
    assert len(str(error.value).splitlines()) == 3


def test_exact():
    values = make("exact")([" a\n", "A", "12", "x"], solution=["a", "a", None, None], answer=[None, None, 12, None])
    assert values == [1.0, 0.0, 1.0, None]


# ---------------------------------------------------------------- reasoning-gym


@pytest.fixture
def gym(monkeypatch):
    """A stand-in for the package: one dataset, half a point for a wrong answer."""

    def score_answer(answer, entry):
        if answer == "boom":
            raise KeyError("answer")
        return 1.0 if answer == entry["answer"] else 0.5

    def get_score_answer_fn(name):
        if name != "sums":
            raise ValueError(name)
        return score_answer

    module = types.ModuleType("reasoning_gym")
    module.get_score_answer_fn = get_score_answer_fn
    module.__spec__ = types.SimpleNamespace(name="reasoning_gym")
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
    from limbeck.rewards import named

    named._gym_scorer.cache_clear()
    yield
    named._gym_scorer.cache_clear()


def test_reasoning_gym_by_metadata_and_by_entry(gym):
    reward = make("reasoning_gym")
    meta = {"source_dataset": "sums", "unused": None}
    texts = ["<answer>3</answer>", "4", "3", "boom", "3"]
    metadata = [meta, json.dumps(meta), None, meta, {"source_dataset": "unknown"}]
    values = reward(texts, metadata=metadata, answer=["3"] * 5)
    assert values[:3] == [1.0, 0.5, None]
    assert [value.reason for value in values[3:]] == ["score_answer raised KeyError", "score_answer raised ValueError"]
    entry = {"question": "1+2", "answer": "3", "metadata": meta}
    assert reward(["3", "3"], entry=[entry, None]) == [1.0, None]


def test_reasoning_gym_itself():
    gym = pytest.importorskip("reasoning_gym")
    dataset = gym.create_dataset("chain_sum", size=3, seed=5)
    rows = [dataset[i] for i in range(3)]
    texts = [rows[0]["answer"], f"<think>..</think><answer>{rows[1]['answer']}</answer>", "no number"]
    columns = {key: [row[key] for row in rows] for key in ("question", "answer", "metadata")}
    assert make("reasoning_gym")(texts, **columns) == [1.0, 1.0, 0.0]


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("limbeck.rewards.named.find_spec", lambda name: None)
    for name, install in [
        ("accuracy", "limbeck[math]"),
        ("cosine", "limbeck[math]"),
        ("reasoning_gym", "reasoning-gym"),
    ]:
        with pytest.raises(ConfigError) as error:
            make(name)
        assert install in str(error.value) and len(str(error.value).splitlines()) == 3
