# Settings that were changed (as .rpmsave) and the state stay: to remove a package is not to remove what it has written.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
