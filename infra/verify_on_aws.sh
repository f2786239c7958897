#!/usr/bin/env bash
# Checks a deployment for what only AWS can show, and prints a table. Everything else is tested without an account.
set -euo pipefail

STACK=tenuto
TOPIC=""
RECORDS=0
SCHEDULES=5
WAIT_SECONDS_MAX=300

usage() {
    cat <<'TEXT'
Usage: infra/verify_on_aws.sh [--stack NAME] [--schedules N] [--produce COMMAND]

Checks a deployment of template.yaml:
  denials     what the roles of handlers, Scheduler and dispatcher may and may not do, by IAM's own simulator
  alias       that the handlers' function answers a discovery behind its alias
  scheduler   how late one-time schedules of the deployment's own group reach the dispatcher
  mapping     whether the event source mapping is enabled and, with --produce, whether a record is delivered

Options:
  --stack NAME         the root stack (default: tenuto)
  --schedules N        one-time schedules to measure, 0 for none (default: 5); takes about two minutes
  --produce COMMAND    a shell command that puts one record into the topic of the mapping; for instance
                       "echo 'ann:{...}' | kcat -P -b $BROKERS -t user-updates -K:"
  --help               this text

Needs the AWS CLI 2, jq, GNU date, and credentials that may read the stack, simulate policies, invoke the functions,
make schedules in the group and pass the Scheduler's role. It writes nothing but those schedules, which delete
themselves, and the record that COMMAND puts. Exit status: 0 when every check passed, 1 otherwise.
TEXT
}

PRODUCE=""
while [ $# -gt 0 ]; do
    case $1 in
        --stack) STACK=${2:?--stack needs a name}; shift 2 ;;
        --schedules) SCHEDULES=${2:?--schedules needs a number}; shift 2 ;;
        --produce) PRODUCE=${2:?--produce needs a command}; shift 2 ;;
        --help | -h) usage; exit 0 ;;
        *) echo "unknown option $1; --help lists them" >&2; exit 2 ;;
    esac
done

for program in aws jq date; do
    command -v "$program" >/dev/null 2>&1 || { echo "$program is needed and not there" >&2; exit 2; }
done

export AWS_PAGER=""
failures=0

row() { printf '%-10s %-58s %-8s %s\n' "$1" "$2" "$3" "${4:-}"; }

check() { # <group> <what> <passed|failed|skipped> [detail]
    row "$1" "$2" "$3" "${4:-}"
    if [ "$3" = failed ]; then failures=$((failures + 1)); fi
}

# The physical id of a resource: <stack> <logical id>. Empty when there is none.
physical() {
    aws cloudformation describe-stack-resource --stack-name "$1" --logical-resource-id "$2" \
        --query StackResourceDetail.PhysicalResourceId --output text 2>/dev/null || true
}

output() {
    aws cloudformation describe-stacks --stack-name "$STACK" \
        --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue | [0]" --output text
}

role_arn() { aws iam get-role --role-name "$1" --query Role.Arn --output text; }

# <role ARN> <action> <resource> [context entry ...]: the simulator's decision.
decision() {
    local role=$1 action=$2 resource=$3
    shift 3
    local context=()
    if [ $# -gt 0 ]; then context=(--context-entries "$@"); fi
    aws iam simulate-principal-policy --policy-source-arn "$role" --action-names "$action" \
        --resource-arns "$resource" ${context[@]+"${context[@]}"} \
        --query 'EvaluationResults[0].EvalDecision' --output text
}

# <allowed|denied> <what> <decision arguments ...>
expect() {
    local wanted=$1 what=$2 found
    shift 2
    if ! found=$(decision "$@" 2>&1); then
        check denials "$what" failed "the simulator refused: ${found##*$'\n'}"
    elif { [ "$wanted" = allowed ] && [ "$found" = allowed ]; } || { [ "$wanted" = denied ] && [ "$found" != allowed ]; }; then
        check denials "$what" passed "$found"
    else
        check denials "$what" failed "$found, expected $wanted"
    fi
}

leading_key() { printf 'ContextKeyName=dynamodb:LeadingKeys,ContextKeyType=stringList,ContextKeyValues=%s' "$1"; }
passed_to() { printf 'ContextKeyName=iam:PassedToService,ContextKeyType=string,ContextKeyValues=%s' "$1"; }

check_handler_role() {
    local handler
    handler=$(role_arn "$(physical "$FUNCTIONS_STACK" UserUpdatesRole)")
    for action in GetItem PutItem UpdateItem BatchWriteItem; do
        expect allowed "a handler's $action on its own lane" \
            "$handler" "dynamodb:$action" "$TABLE_ARN" "$(leading_key userUpdates/ann)"
    done
    expect denied "a handler's UpdateItem on another service's lane" \
        "$handler" dynamodb:UpdateItem "$TABLE_ARN" "$(leading_key orders/ann)"
    expect denied "a handler's UpdateItem on a service with a longer name" \
        "$handler" dynamodb:UpdateItem "$TABLE_ARN" "$(leading_key userUpdates2/ann)"
    expect allowed "a handler's PutItem of a timer" \
        "$handler" dynamodb:PutItem "$TABLE_ARN" "$(leading_key 'T#29000000#0')"
    expect denied "a handler's GetItem of a timer" \
        "$handler" dynamodb:GetItem "$TABLE_ARN" "$(leading_key 'T#29000000#0')"
    expect denied "a handler's GetItem of a result" \
        "$handler" dynamodb:GetItem "$TABLE_ARN" "$(leading_key 'R#inv_x')"
    expect denied "a handler's PutItem without a key" "$handler" dynamodb:PutItem "$TABLE_ARN"
    for action in Query Scan DeleteItem; do
        expect denied "a handler's $action on its own lane" \
            "$handler" "dynamodb:$action" "$TABLE_ARN" "$(leading_key userUpdates/ann)"
    done
    expect denied "a handler's invocation of a function" "$handler" lambda:InvokeFunction "$HANDLER_ALIAS"
}

check_dispatcher_roles() {
    local dispatcher scheduler
    dispatcher=$(role_arn "$(physical "$DISPATCHER_STACK" DispatcherRole)")
    scheduler=$(role_arn "$(physical "$DISPATCHER_STACK" SchedulerRole)")
    expect allowed "the dispatcher's Query" "$dispatcher" dynamodb:Query "$TABLE_ARN"
    expect denied "the dispatcher's Scan" "$dispatcher" dynamodb:Scan "$TABLE_ARN"
    expect allowed "the dispatcher invokes a handler by its alias" "$dispatcher" lambda:InvokeFunction "$HANDLER_ALIAS"
    expect denied "the dispatcher invokes a handler past its alias" \
        "$dispatcher" lambda:InvokeFunction "${HANDLER_ALIAS%:*}"
    expect allowed "the dispatcher passes the Scheduler's role to the Scheduler" \
        "$dispatcher" iam:PassRole "$scheduler" "$(passed_to scheduler.amazonaws.com)"
    expect denied "the dispatcher passes the Scheduler's role to Lambda" \
        "$dispatcher" iam:PassRole "$scheduler" "$(passed_to lambda.amazonaws.com)"
    expect denied "the dispatcher passes its own role" \
        "$dispatcher" iam:PassRole "$dispatcher" "$(passed_to scheduler.amazonaws.com)"
    expect allowed "the Scheduler invokes the dispatcher" "$scheduler" lambda:InvokeFunction "$DISPATCHER_ALIAS"
    expect denied "the Scheduler invokes a handler" "$scheduler" lambda:InvokeFunction "$HANDLER_ALIAS"
}

check_alias() {
    local answer=$WORK/discovery.json error
    error=$(aws lambda invoke --function-name "$HANDLER_ALIAS" --cli-binary-format raw-in-base64-out \
        --payload '{"type":"discover"}' --query FunctionError --output text "$answer")
    if [ "$error" = None ] && jq -e '.services[].name' "$answer" >/dev/null; then
        check alias "a discovery behind the alias" passed "$(jq -r '[.services[].name] | join(", ")' "$answer")"
    else
        check alias "a discovery behind the alias" failed "$error: $(head -c 200 "$answer")"
    fi
}

# Milliseconds at which the dispatcher began an invocation since <ms>, one a line; its platform logs have them.
invocations_since() {
    aws logs filter-log-events --log-group-name "$DISPATCHER_LOGS" --start-time "$1" \
        --filter-pattern '{ $.type = "platform.start" }' --query 'events[].timestamp' --output text | tr '\t' '\n'
}

check_scheduler() {
    if [ "$SCHEDULES" -eq 0 ]; then
        check scheduler "one-time schedules" skipped "--schedules 0"
        return
    fi
    local group role dlq due began name number found late latest=0 arrived=0
    group=$(physical "$DISPATCHER_STACK" Schedules)
    group=${group##*/}
    role=$(role_arn "$(physical "$DISPATCHER_STACK" SchedulerRole)")
    dlq=$(aws sqs get-queue-attributes --queue-url "$(physical "$DISPATCHER_STACK" DeadLetters)" \
        --attribute-names QueueArn --query Attributes.QueueArn --output text)
    began=$(($(date +%s) * 1000))
    # Each at a second of its own, apart from the sweep at the full minute, so that an invocation can be told by its time.
    due=$(($(date +%s) / 60 * 60 + 70))
    for number in $(seq 1 "$SCHEDULES"); do
        name="verify-$$-$number"
        aws scheduler create-schedule --name "$name" --group-name "$group" --action-after-completion DELETE \
            --flexible-time-window Mode=OFF --schedule-expression-timezone UTC \
            --schedule-expression "at($(date -u -d "@$((due + number * 7))" +%Y-%m-%dT%H:%M:%S))" \
            --target "$(jq -cn --arg arn "$DISPATCHER_ALIAS" --arg role "$role" --arg dlq "$dlq" --arg lane "userUpdates/$name" \
                '{Arn: $arn, RoleArn: $role, DeadLetterConfig: {Arn: $dlq},
                  Input: ({tenuto: "wake", lane: $lane} | tojson)}')" >/dev/null
    done
    check scheduler "$SCHEDULES one-time schedules made in group $group" passed
    # A schedule may fire any time within its minute; the logs take a little longer.
    sleep $((due + SCHEDULES * 7 - $(date +%s) + 90))
    invocations_since "$began" >"$WORK/started"
    for number in $(seq 1 "$SCHEDULES"); do
        found=$(awk -v due="$(((due + number * 7) * 1000))" '$1 >= due - 500 { print $1; exit }' < <(sort -n "$WORK/started"))
        if [ -z "$found" ]; then continue; fi
        arrived=$((arrived + 1))
        late=$((found - (due + number * 7) * 1000))
        if [ "$late" -gt "$latest" ]; then latest=$late; fi
    done
    if [ "$arrived" -eq "$SCHEDULES" ] && [ "$latest" -le 60000 ]; then
        check scheduler "lateness of wake-ups, at most" passed "$latest ms (an invocation since the due time was taken for it)"
    else
        check scheduler "lateness of wake-ups, at most" failed "$latest ms; $arrived of $SCHEDULES arrived"
    fi
    found=$(aws scheduler list-schedules --group-name "$group" --name-prefix "verify-$$-" --query 'length(Schedules)' --output text)
    if [ "$found" = 0 ]; then
        check scheduler "completed schedules delete themselves" passed
    else
        check scheduler "completed schedules delete themselves" failed "$found are left"
    fi
}

check_mapping() {
    local stack mapping state began deadline
    stack=$(physical "$STACK" KafkaSource)
    if [ -z "$stack" ] || [ "$stack" = None ]; then
        check mapping "event source mapping" skipped "BootstrapServers is empty"
        return
    fi
    mapping=$(physical "$stack" Source)
    state=$(aws lambda get-event-source-mapping --uuid "$mapping" --query '[State, LastProcessingResult]' --output text)
    TOPIC=$(aws lambda get-event-source-mapping --uuid "$mapping" --query 'Topics[0]' --output text)
    case $state in
        Enabled*) check mapping "the mapping of $TOPIC is enabled" passed "$state" ;;
        *) check mapping "the mapping of $TOPIC is enabled" failed "$state" ;;
    esac
    if [ -z "$PRODUCE" ]; then
        check mapping "a record is delivered" skipped "no --produce"
        return
    fi
    began=$(($(date +%s) * 1000))
    deadline=$(($(date +%s) + WAIT_SECONDS_MAX))
    bash -c "$PRODUCE"
    while [ "$(date +%s)" -lt "$deadline" ]; do
        # The handlers' function starts for a record, and for nothing else that this script does from here on.
        RECORDS=$(aws logs filter-log-events --log-group-name "$HANDLER_LOGS" --start-time "$began" \
            --filter-pattern '{ $.type = "platform.start" }' --query 'length(events)' --output text)
        if [ "$RECORDS" -gt 0 ]; then
            check mapping "a record is delivered" passed "the handler began within $(($(date +%s) - began / 1000)) s, logs included"
            return
        fi
        sleep 5
    done
    check mapping "a record is delivered" failed "no invocation of the handler within $WAIT_SECONDS_MAX s"
}

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

FUNCTIONS_STACK=$(physical "$STACK" Functions)
DISPATCHER_STACK=$(physical "$STACK" Dispatcher)
if [ -z "$FUNCTIONS_STACK" ]; then
    echo "stack $STACK is not there, or is no deployment of template.yaml; name another with --stack" >&2
    exit 2
fi
TABLE_ARN=$(aws dynamodb describe-table --table-name "$(output TableName)" --query Table.TableArn --output text)
HANDLER_ALIAS=$(output UserUpdatesArn)
HANDLER_LOGS=$(physical "$FUNCTIONS_STACK" UserUpdatesLogs)

row group check result detail
check_handler_role
check_alias
if [ -n "$DISPATCHER_STACK" ] && [ "$DISPATCHER_STACK" != None ]; then
    DISPATCHER_ALIAS=$(output DispatcherArn)
    DISPATCHER_LOGS=$(physical "$DISPATCHER_STACK" DispatcherLogs)
    check_dispatcher_roles
    check_mapping
    check_scheduler
else
    check scheduler "wake-ups and mapping" skipped "Shape=AlwaysOn has neither"
fi

if [ "$failures" -gt 0 ]; then
    echo "$failures checks failed" >&2
    exit 1
fi
