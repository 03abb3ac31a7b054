"""What a trained network errs on corrupted images, as trained and adapted."""
