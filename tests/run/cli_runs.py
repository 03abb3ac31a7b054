"""What the tests of the command line share."""


def refused(code, capfd, *patterns):
    """Exit code 2 and one line that names all of these; nothing on stdout."""
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("fastbn: error: ") and err.count("\n") == 1, err
    for pattern in patterns:
        assert pattern in err
    return err
