"""The ResNets that train BatchNorm and only BatchNorm, and their seeded weights."""
