# Read by tuning/check, apply and undo: which files settings.tsv means on this machine, what each has and should have.
# Nothing here writes.
#   TABLEFORGE_TUNING_ROOT   a directory to look below instead of /, for tests
#   TABLEFORGE_SHARD_CPUS    the CPUs of the shards, such as 2-7; by default all but the first quarter of them, and
#                            none (no steering, no isolation) on machines with fewer than four CPUs
# shellcheck shell=bash

subjects=(sysctl files backlog ports memory steering governor isolation)
root=${TABLEFORGE_TUNING_ROOT:-/}
root=${root%/}/
state=${root}var/lib/tableforge/tuning.state
table=${BASH_SOURCE[0]%/*}/settings.tsv

fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# Sets `chosen` to the subjects that the arguments name; `all` names all.
choose() {
    chosen=()
    local name
    for name; do
        case " ${subjects[*]} all " in
            *" $name "*) ;;
            *) fail "there is no subject '$name'; there are: all ${subjects[*]}" ;;
        esac
        if [ "$name" = all ]; then chosen=("${subjects[@]}"); return; fi
        chosen+=("$name")
    done
}

# The CPUs of a list such as 0-2,5, one a line.
expand_list() {
    local part
    for part in ${1//,/ }; do
        [[ $part =~ ^([0-9]+)(-([0-9]+))?$ ]] || return 1
        seq "$((10#${BASH_REMATCH[1]}))" "$((10#${BASH_REMATCH[3]:-${BASH_REMATCH[1]}}))"
    done
}

# Reads CPU numbers, one a line; prints them as a list such as 0-2,5.
as_list() {
    sort -nu | awk '
        NR > 1 && $1 == last + 1 { last = $1; next }
        NR > 1 { printf "%s%s", comma, (first == last) ? first : first "-" last; comma = "," }
        { first = last = $1 }
        END { if (NR) printf "%s%s", comma, (first == last) ? first : first "-" last; print "" }'
}

# Reads CPU numbers, one a line; prints them as a mask of 32-bit words, such as 1,0000000f.
as_mask() {
    local cpu word words=(0)
    while read -r cpu; do
        for ((word = ${#words[@]}; word <= cpu / 32; word++)); do words[word]=0; done
        words[cpu / 32]=$((words[cpu / 32] | 1 << cpu % 32))
    done
    printf '%x' "${words[-1]}"
    for ((word = ${#words[@]} - 2; word >= 0; word--)); do printf ',%08x' "${words[word]}"; done
    echo
}

# Reads the file `online` and sets `all_cpus`, `shard_cpus` and `network_cpus`: lines of CPU numbers.
divide_cpus() {
    local online count
    online=$(cat "${root}sys/devices/system/cpu/online" 2> /dev/null) || online=0
    all_cpus=$(expand_list "$online" | sort -nu)
    count=$(wc -l <<< "$all_cpus")
    if [ -n "${TABLEFORGE_SHARD_CPUS:-}" ]; then
        shard_cpus=$(expand_list "$TABLEFORGE_SHARD_CPUS" | sort -nu) ||
            fail "TABLEFORGE_SHARD_CPUS: '$TABLEFORGE_SHARD_CPUS' is not a list of CPUs such as 2-7 or 1,3"
    elif [ "$count" -ge 4 ]; then
        shard_cpus=$(tail -n "+$((count / 4 + 1))" <<< "$all_cpus")
    else
        shard_cpus=
    fi
    network_cpus=$(grep -vxF -f <(printf '%s\n' "${shard_cpus:-none}") <<< "$all_cpus") || network_cpus=
    if [ -z "$network_cpus" ]; then
        fail "TABLEFORGE_SHARD_CPUS: '$TABLEFORGE_SHARD_CPUS' leaves no CPU for everything else; there are $online"
    fi
}

# The directories of network devices that are hardware, as paths below the root.
hardware() {
    local device
    for device in "${root}"sys/class/net/*; do
        if [ -e "$device/device" ]; then echo "${device#"$root"}"; fi
    done
}

# The files that a pattern of the table means, as paths below the root, one a line.
files_of() {
    local pattern=$1 device directory file
    case $pattern in
        *'{nic}'*)
            while read -r device; do
                for file in "$root$device"/${pattern#*'{nic}/'}; do
                    if [ -e "$file" ]; then echo "${file#"$root"}"; fi
                done
            done < <(hardware) ;;
        *'{irq}'*)
            while read -r device; do
                # The interrupts of a virtio device are its parent's.
                for directory in "$root$device/device/msi_irqs" "$root$device/device/../msi_irqs"; do
                    for file in "$directory"/*; do
                        file=${pattern/'{irq}'/${file##*/}}
                        if [ -e "$root$file" ]; then echo "$file"; fi
                    done
                done
            done < <(hardware) | sort -u ;;
        etc/*) echo "$pattern" ;;
        *)
            for file in "$root"$pattern; do
                if [ -e "$file" ]; then echo "${file#"$root"}"; fi
            done ;;
    esac
}

# What a file holds: its words, one space between; `none` if there is no such file. Fails if it cannot be read.
content_of() {
    if [ ! -e "$root$1" ]; then echo none; return; fi
    local words
    read -r -a words -d '' < <(cat "$root$1" 2> /dev/null && printf '\0') || return 1
    echo "${words[*]}"
}

# The CPUs that should send through the queue that a file of xps_cpus belongs to.
cpus_of_queue() {
    local queue=${1%/*} queues=("$root${1%/tx-*}"/tx-*)
    awk -v queue="${queue##*/tx-}" -v queues="${#queues[@]}" '(NR - 1) % queues == queue' <<< "$all_cpus"
}

# The value that a file should have, as it is written.
wanted_of() {
    local file=$1 rule=$2 wanted=$3 pages part
    case $wanted in
        '{network}') if [ "$rule" = mask ]; then as_mask; else as_list; fi <<< "$network_cpus" ;;
        '{queue}') cpus_of_queue "$file" | as_mask ;;
        *'{memory/'*)
            pages=$(awk '/^MemTotal:/ { print int($2 / 4) }' "${root}proc/meminfo")
            for part in 16 8 4; do wanted=${wanted/"{memory/$part}"/$((pages / part))}; done
            echo "$wanted" ;;
        *) printf '%b\n' "$wanted" ;;
    esac
}

# The numbers that satisfy rule $2 and keep what is better in $1 already.
raised() {
    awk -v now="$1" -v rule="$2" -v wanted="$3" 'BEGIN {
        count = split(wanted, w); split(now, n)
        for (i = 1; i <= count; i++) {
            keep = (rule == "range" && i == 1) ? n[i] + 0 <= w[i] + 0 : n[i] + 0 >= w[i] + 0
            printf "%s%s", (i > 1 ? " " : ""), ((keep && n[i] != "") ? n[i] : w[i])
        }
        print ""
    }'
}

# Whether the content $2 is as rule $1 and the wanted value $3 say.
is_met() {
    local rule=$1 now=$2 wanted=$3 words
    case $rule in
        least | range) [ "$(raised "$now" "$rule" "$wanted")" = "$now" ] ;;
        equal) [ "$now" = "$wanted" ] ;;
        text) read -r -a words -d '' <<< "$wanted" || true; [ "$now" = "${words[*]}" ] ;;
        list) [ "$(expand_list "$now" | as_list)" = "$wanted" ] ;;
        mask) [ "$(bare "$now")" = "$(bare "$wanted")" ] ;;
        *) fail "settings.tsv: there is no rule '$rule'" ;;
    esac
}

# A mask without commas and leading zeros.
bare() {
    local mask=${1//,/}
    while [[ $mask == 0?* ]]; do mask=${mask#0}; done
    echo "$mask"
}

# Calls $1 with subject, file, rule, current, wanted and why of everything that the chosen subjects mean here.
each_setting() {
    local visit=$1 subject pattern rule wanted why file now
    divide_cpus
    while IFS=$'\t' read -r subject pattern rule wanted why <&4; do
        case " ${chosen[*]} " in *" $subject "*) ;; *) continue ;; esac
        # Without CPUs of their own for the shards there is nothing to keep off them.
        if [ -z "$shard_cpus" ] && [[ $subject == @(steering|isolation) ]]; then continue; fi
        while read -r file <&5; do
            # A file that cannot be read belongs to something that this machine does not offer.
            now=$(content_of "$file") || continue
            "$visit" "$subject" "$file" "$rule" "$now" "$(wanted_of "$file" "$rule" "$wanted")" "$why"
        done 5< <(files_of "$pattern")
    done 4< <(grep -v '^#' "$table")
}
