from hypothesis import settings

# A shared machine may stall for longer than hypothesis' default deadline; the time limit of each test still holds.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
