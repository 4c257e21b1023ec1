"""The report of a run or an evaluation: one page that needs no other file and no network."""
