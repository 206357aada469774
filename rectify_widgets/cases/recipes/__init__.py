"""How each case is made: one file a behaviour, and what they share.  Imports the cases' own files.

Nothing that `load` needs is here; `rectify_widgets.cases.build` is the command.
"""
