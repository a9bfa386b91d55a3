# Read by tuning/apply and undo: what was there before, kept so that it can be restored to the byte.
# A line of the state is: boot, file below the root, former content in base64, or `absent` for a file that was not
# there. shellcheck shell=bash

boot=$(cat "${root}proc/sys/kernel/random/boot_id" 2> /dev/null) || boot=unknown

# Puts what was read from stdin in the place of the state, at once or not at all.
replace_state() {
    cat > "$state.new"
    sync "$state.new" 2> /dev/null || true
    mv "$state.new" "$state"
}

# Settings of the kernel that an earlier boot changed are gone with it: restoring them would change this one's.
forget_other_boots() {
    [ -e "$state" ] || : > "$state"
    awk -F '\t' -v boot="$boot" '$1 == boot || $2 !~ /^(proc|sys)\//' "$state" | replace_state
}

# Keeps what a file holds now, unless the state knows it from before.
remember() {
    local former=absent
    if awk -F '\t' -v file="$1" '$2 == file { found = 1 } END { exit !found }' "$state"; then return; fi
    if [ -e "$root$1" ]; then former=$(base64 -w 0 < "$root$1"); fi
    { cat "$state"; printf '%s\t%s\t%s\n' "$boot" "$1" "$former"; } | replace_state
}

forget() {
    awk -F '\t' -v file="$1" '$2 != file' "$state" | replace_state
}

# Forgets a file that still is as the state has it: there is nothing to restore.
drop_if_untouched() {
    local former now=absent
    former=$(awk -F '\t' -v file="$1" '$2 == file { print $3 }' "$state")
    if [ -e "$root$1" ]; then now=$(base64 -w 0 < "$root$1"); fi
    if [ "$now" = "$former" ]; then forget "$1"; fi
}

# Writes a value in one piece, as files of the kernel want it.
write() {
    case $1 in etc/*) mkdir -p "$root${1%/*}" ;; esac
    { printf '%s\n' "$2" > "$root$1"; } 2> /dev/null
}

# Gives a file its former content.
restore() {
    if [ "$2" = absent ]; then
        rm -f "$root$1" 2> /dev/null
    else
        { base64 -d <<< "$2" > "$root$1"; } 2> /dev/null
    fi
}
