"""How fast the program is on this machine: trainings, stages and stores, each against a bound of the same run."""
