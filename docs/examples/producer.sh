#!/bin/sh
set -eu
broker=$1 results=$2 id=$3 project=$4 net=$5 gib=$6

want='{"version": 1, "context": {"project_id": "'$project'"}, "size": '$gib', "share_network_id": "'$net'"}'
embed='{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
body=$(printf '[[%s], {}, %s]' "$want" "$embed" | base64 | tr -d '\n')
redis-cli -u "$broker" lpush requests '{
  "body": "'"$body"'", "content-type": "application/json", "content-encoding": "utf-8",
  "headers": {"lang": "sh", "task": "sharewright.request.create_share", "id": "'"$id"'"},
  "properties": {
    "body_encoding": "base64", "delivery_tag": "'"$id-$$"'", "correlation_id": "'"$id"'",
    "delivery_info": {"exchange": "", "routing_key": "requests"}, "priority": 0
  }
}' >/dev/null

tries=0
while [ "$tries" -lt 60 ]; do
    answer=$(redis-cli -u "$results" get "celery-task-meta-$id")
    case $answer in
        *'"status": "SUCCESS"'*)
            printf '%s\n' "$answer" | sed 's/.*"path": "\([^"]*\)".*/\1/'
            exit ;;
        *'"status": "FAILURE"'*)
            printf '%s\n' "$answer" | sed 's/.*"exc_message": \(\[.*\]\), "exc_module".*/\1/' >&2
            exit 1 ;;
    esac
    tries=$((tries + 1))
    sleep 1
done
echo "no answer" >&2
exit 1
