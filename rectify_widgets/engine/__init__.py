"""The engine: finding the responsible layer, editing it, measuring what came of it.

Torch, numpy and safetensors only; no widget and no plotting.  Seven rooms, each of which imports
those before it and none after it: `base`, `model`, `data`, `edit`, `measure`, `find`, `repair`.
"""
