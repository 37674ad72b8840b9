"""The conformance suite: does a normalization layer do what its specification says?

Cases (data) meet implementations (plain objects behind one protocol); the error of each is reported in rounding units. Only
the modules in ``implementations`` import a framework.
"""
