# The last word of an installation or an upgrade: the old files are gone. A running daemon becomes the new program in place: the workers
# go on, and a program that cannot take over is refused, and the old one goes on.
if [ -d /run/systemd/system ]; then
    for unit in plimsoll.service plimsoll-attach.service; do
        systemctl --quiet is-active "$unit" || continue
        if ! timeout 60 systemctl reload "$unit"; then
            echo "plimsoll: the running daemon did not become the new program; it goes on as it was, and so do its workers." >&2
            echo "plimsoll: why is in: journalctl -u $unit" >&2
        fi
    done
fi
