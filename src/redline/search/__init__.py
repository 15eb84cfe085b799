"""Goals, budgets, the race between candidates, the choice, and the cache of timings."""
