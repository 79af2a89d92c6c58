"""How an adapter is learnt: recipe, data, loop, evaluation, registration in the zoo."""
