"""The same number of random draws of settings per method, then the leaderboard of the chosen."""
