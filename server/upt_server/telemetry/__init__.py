"""What operators are told of each call: its line in the log and its trace. Never a text."""
