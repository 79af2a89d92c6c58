"""How many servers a load takes: measured costs, one simulated server, the plan. No torch here."""
