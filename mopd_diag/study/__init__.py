"""A study from plan to report: what is run, in which order, and how it goes on after a stop."""
