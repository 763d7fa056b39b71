"""Which signals ask a process to end."""

import signal


def ending() -> tuple[signal.Signals, ...]:
    """Return them: a terminal that closes asks, too, unless the process was started to outlive it (nohup)."""
    asked = (signal.SIGTERM, signal.SIGINT)
    hang_up = getattr(signal, "SIGHUP", None)  # not on every platform
    if hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN:
        return asked
    return (*asked, hang_up)
