"""Who the teacher is."""

from limbeck.teachers.base import Answers, Named, Teacher
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.routed import RoutedTeacher
from limbeck.teachers.shadow import Shadow

__all__ = ["Answers", "LocalTeacher", "Named", "RoutedTeacher", "Shadow", "Teacher"]
