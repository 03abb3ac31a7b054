"""The errors of a trained network on corrupted images, as trained and adapted."""
