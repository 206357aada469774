"""A model as the engine sees it: running it, its layers as keys and values, its gradients, its memory."""
