# $1 is 0 when it is removed; before an upgrade nothing is ended.
if [ "$1" -eq 0 ] && [ -x /usr/bin/systemctl ]; then
    for unit in plimsoll.socket plimsoll.service plimsoll-attach.service; do
        if [ -e "/usr/lib/systemd/system/$unit" ]; then
            if [ -d /run/systemd/system ]; then
                systemctl --no-reload disable --now "$unit" || :
            else
                systemctl --no-reload disable "$unit" || :
            fi
        fi
    done
fi
