"""The command behind `make soak`: a few episodes are right, and what goes wrong in one is found."""
