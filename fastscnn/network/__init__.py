"""The network as an `nn.Module`: configuration, blocks, model, and frames in and labels out."""
