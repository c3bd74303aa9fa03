"""`gather doctor`: what of this machine and job will be slow or fail, and how to mend it.

What is so is read in one place (`look.py`, as `Facts`); what that means is judged by pure functions (`machine_checks`,
`software_checks`, `job_checks`); `meeting.py` brings together the ranks of a job; `report.py` says it.
"""
