"""From one odd picture, or from a network alone, to pairs.  Imports the engine and `explain`."""
