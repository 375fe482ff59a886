"""Image classifiers whose robustness is proven: Gaussians on frozen pretrained features, with exact certificates."""
