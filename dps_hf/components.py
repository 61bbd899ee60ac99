def from_components():
    pass
