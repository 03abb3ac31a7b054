"""The network as data, read off a torch.fx trace."""
