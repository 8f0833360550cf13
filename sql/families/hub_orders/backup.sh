#!/usr/bin/env bash
# Back up the service's database, and let go of backups that nobody needs any more: daily at 2 in the morning (UTC), by cron.
#
#   backup.sh DIRECTORY              a new backup, read back, then the old ones go
#   backup.sh --prune DIRECTORY      the old ones go
#   backup.sh --list DIRECTORY       show which would go, and touch nothing
#
# What to back up is told as libpq has it (PGHOST, PGUSER, PGPASSFILE, PGSERVICE and so on; PGDATABASE is hub_order_service where it
# is not set), so no password is among anybody's arguments. Other numbers than these: KEEP_DAYS=30 KEEP_WEEKS=12 KEEP_MONTHS=12.
#
# Kept is the last backup of each of the 30 newest days, 12 newest weeks (from Monday on) and 12 newest months of which there is a
# backup. They are counted by backups and not by the calendar: if backups stop, none goes. Only files that are named as this script
# names them are looked at. A backup has its name once it is whole.
#
# This is the daily part. Every six hours, and any moment between: archive_mode and archive_command, with pg_basebackup.
set -euo pipefail
umask 077

usage() {
  sed -n '4,6s/^# *//p' "$0" >&2
  exit 2
}

doomed() { # print the names of backups that are the last of no day, week and month to keep; the oldest come last
  local path
  for path in "$directory/${name}"_*.backup; do
    if [ -f "$path" ]; then printf '%s\n' "${path##*/}"; fi
  done | LC_ALL=C sort -r | awk -v name="$name" -v days="${KEEP_DAYS:-30}" -v weeks="${KEEP_WEEKS:-12}" -v months="${KEEP_MONTHS:-12}" '
    function day_number(y, m, d) { # days since a Monday long ago
      if (m < 3) { m += 12; y -= 1 }
      return 365 * y + int(y / 4) - int(y / 100) + int(y / 400) + int((153 * m - 457) / 5) + d - 307
    }
    {
      stamp = substr($0, length(name) + 2)
      if (substr($0, 1, length(name) + 1) != name "_" || stamp !~ /^[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]_[0-9][0-9][0-9][0-9][0-9][0-9]\.backup$/) next
      day = substr(stamp, 1, 8)
      month = substr(stamp, 1, 6)
      week = int(day_number(substr(stamp, 1, 4) + 0, substr(stamp, 5, 2) + 0, substr(stamp, 7, 2) + 0) / 7)
      is_kept = 0
      if (!(day in seen_day)) { seen_day[day] = 1; if (++day_count <= days) is_kept = 1 }
      if (!(week in seen_week)) { seen_week[week] = 1; if (++week_count <= weeks) is_kept = 1 }
      if (!(month in seen_month)) { seen_month[month] = 1; if (++month_count <= months) is_kept = 1 }
      if (!is_kept) print
    }'
}

prune() {
  local file
  doomed | while IFS= read -r file; do
    rm -- "$directory/$file"
    printf 'removed %s\n' "$file"
  done
}

back_up() {
  target="$directory/${name}_$(date -u +%Y%m%d_%H%M%S).backup"
  trap 'rm -f -- "$target.part"' EXIT
  pg_dump --format=custom --file="$target.part" --dbname="$name"
  pg_restore --file=/dev/null "$target.part" # read to its end: a backup that cannot be read is none
  mv -- "$target.part" "$target"
  printf 'wrote %s\n' "${target##*/}"
}

action=all
case "${1:-}" in
  --prune) action=prune; shift ;;
  --list) action=list; shift ;;
  -*) usage ;;
esac
[ $# -eq 1 ] || usage
directory=$1
name=${PGDATABASE:-hub_order_service}
case "$name" in
  */* | *=*) echo "backup.sh: PGDATABASE has to be a name, not a connection string" >&2; exit 2 ;;
esac
for number in "${KEEP_DAYS:-30}" "${KEEP_WEEKS:-12}" "${KEEP_MONTHS:-12}"; do
  case "$number" in
    '' | 0 | *[!0-9]*) echo "backup.sh: to keep $number is no number above 0" >&2; exit 2 ;;
  esac
done
[ -d "$directory" ] || { echo "backup.sh: there is no directory $directory" >&2; exit 2; }

case "$action" in
  all) # not joined by &&, which would let either go on after an error
    back_up
    prune
    ;;
  prune) prune ;;
  list) doomed ;;
esac
