"""Pictures and checks of a built dataset."""
