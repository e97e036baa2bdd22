"""Side-by-side measurements; README.md says what each command compares."""
