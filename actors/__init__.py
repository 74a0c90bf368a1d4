"""Ray actors: they carry owners and the server, and hold no logic of their own. Imported as ``fedray.actors``."""

if __name__ != "fedray.actors":
    raise ImportError("import fedray.actors, not actors: the folder at the top level is part of fedray")
