"""Who the teacher is."""

from limbeck.teachers.base import Answers, Named, Teacher
from limbeck.teachers.local import LocalTeacher, fingerprint

__all__ = ["Answers", "LocalTeacher", "Named", "Teacher", "fingerprint"]
