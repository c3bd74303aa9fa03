"""All cases, in the order of their numbers."""

from faults import damage_cases, life_cases, object_cases, step_cases, use_cases
from faults.case import Case

CASES: list[Case] = sorted(
    [*object_cases.CASES, *life_cases.CASES, *step_cases.CASES, *damage_cases.CASES, *use_cases.CASES],
    key=lambda case: case.number,
)
