"""The W&B report 'The Power of Random Features of a CNN' (Paul 2020): its network and its presets."""
