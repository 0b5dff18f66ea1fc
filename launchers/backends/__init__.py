"""How `launchers/submit.py` reaches other machines: one file for each way; all of them start what `job` describes."""
