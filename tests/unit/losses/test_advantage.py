from __future__ import annotations

import pytest
import torch

from limbeck.errors import DataError
from limbeck.losses import opd_advantage, teacher_logratio


def test_the_log_ratio_is_zero_and_clean_where_masked():
    nan, inf = torch.nan, torch.inf
    teacher = torch.tensor([[-1.0, nan, -inf, -0.5]], requires_grad=True)
    student = torch.tensor([[-1.5, -inf, -inf, nan]], requires_grad=True)
    mask = torch.tensor([[True, False, False, False]])
    ratio = teacher_logratio(teacher, student, mask)
    assert ratio.tolist() == [[0.5, 0.0, 0.0, 0.0]]
    assert not ratio.requires_grad


def test_probability_zero_under_the_teacher_is_an_error_unless_clipped():
    teacher, student, mask = torch.tensor([-torch.inf, -9.0]), torch.tensor([-1.0, -1.0]), torch.tensor([True, True])
    with pytest.raises(DataError, match="1 active") as caught:
        teacher_logratio(teacher, student, mask)
    assert "teacher_logratio_clip" in str(caught.value)
    assert teacher_logratio(teacher, student, mask, clip=5.0).tolist() == [-5.0, -5.0]


def test_not_a_number_on_an_active_token_is_always_an_error():
    values = torch.tensor([torch.nan, 0.0])
    for clip in (None, 3.0):
        with pytest.raises(DataError, match="not a number"):
            teacher_logratio(values, torch.zeros(2), torch.tensor([True, False]), clip=clip)


def test_half_precision_is_subtracted_in_float32():
    ratio = teacher_logratio(torch.tensor([-1.0]).half(), torch.tensor([-1.25]), torch.tensor([1]))
    assert ratio.dtype == torch.float32 and ratio.item() == 0.25


def test_the_advantage_adds_to_every_active_token():
    ratio = torch.tensor([[0.5, -1.0, torch.nan], [2.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    by_sequence = opd_advantage(torch.tensor([1.0, -2.0]), ratio, mask, coef=0.5)
    assert by_sequence.tolist() == [[1.25, 0.5, 0.0], [-1.0, 0.0, 0.0]]
    base = torch.tensor([[1.0, 2.0, torch.inf], [0.0, 9.0, 9.0]])
    assert opd_advantage(base, ratio, mask).tolist() == [[1.5, 1.0, 0.0], [2.0, 0.0, 0.0]]
