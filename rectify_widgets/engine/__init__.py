"""The engine: finding the responsible layer, editing it, measuring what came of it.

Torch, numpy and safetensors only; no widget and no plotting.  A reader follows one pair through the
rooms in this order: `pairs`, `statistics`, `attribution`, `candidates`, `localization`, `editing`,
`judging`, `rectification`, `metrics`; `layers`, `solver`, `scene` and `inspection` hold what they
share.
"""
