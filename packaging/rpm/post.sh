# $1 is 1 when it is installed and 2 or more when it is upgraded.
if [ -e /usr/lib/sysusers.d/plimsoll.conf ] && command -v systemd-sysusers >/dev/null; then
    systemd-sysusers plimsoll.conf || :
fi
if [ "$1" -eq 1 ] && [ -x /usr/bin/systemctl ]; then
    # Whether a service is enabled and started is for the presets of the distribution to say.
    systemctl --no-reload preset plimsoll.service || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
