"""What tests share that read the files of other libraries live."""


def show(request, title, found):
    """Print a table after the tests of a file: what was compared -> the largest difference."""
    lines = ["", title, *(f"{name:60} {difference:.1e}" for name, difference in found.items())]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))
