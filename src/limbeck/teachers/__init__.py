"""Who the teacher is."""

from limbeck.teachers.base import Teacher
from limbeck.teachers.local import LocalTeacher

__all__ = ["LocalTeacher", "Teacher"]
