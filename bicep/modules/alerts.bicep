metadata name = 'Alerts'
metadata description = 'Who is told, and of what: events that Event Grid gives up, answers that make senders repeat, subscribers that fall behind, and the disks of the NATS nodes.'

@description('Required. Name of the action group.')
@minLength(1)
@maxLength(260)
param name string

@description('Required. Region, for the rules over logs.')
param location string

@description('Required. Tags of the resources.')
param tags { *: string }

@description('Required. Who is written to. With nobody, alerts are only in the portal.')
param emailAddresses string[]

@description('Required. Resource ids of the Event Grid topics.')
param topicIds string[]

@description('Required. Resource ids of the apps on the Internet.')
param appIds string[]

@description('Required. Names of all apps, as they are in the logs.')
param appNames string[]

@description('Required. Resource ids of the NATS nodes.')
param nodeIds string[]

@description('Required. Resource id of the workspace with the logs.')
param workspaceId string

// Log lines of gridfan, by their message; docs/metrics.md has what to do about each.
var serious = ['storage.filling', 'storage.shed', 'broker.reopened', 'books.unbalanced', 'source.receive-failing', 'source.failing']
var behind = ['breaker.opened', 'subscriber.misconfigured', 'subscriber.backlog-expired', 'subscriber.deadletters-full', 'subscriber.retries-full']
var apps = join(map(appNames, app => '"${app}"'), ', ')
var lines = 'ContainerAppConsoleLogs_CL | where ContainerAppName_s in (${apps}) | extend line = parse_json(Log_s) | extend what = tostring(line.msg), about = tostring(line.about)'

// The rules of each kind of resource; each rule is an alert for every resource of
// that kind.
var topicRules = [
  {
    suffix: 'dead-lettered'
    description: 'Event Grid gave events up and put them into the dead-letter container.'
    severity: 1
    frequency: 'PT5M'
    window: 'PT15M'
    metric: 'DeadLetteredCount'
    dimensions: []
    aggregation: 'Total'
    operator: 'GreaterThan'
    threshold: 0
  }
  {
    suffix: 'dropped'
    description: 'Event Grid gave events up and could not keep them: it may not write to the dead-letter container.'
    severity: 0
    frequency: 'PT5M'
    window: 'PT15M'
    metric: 'DroppedEventCount'
    dimensions: []
    aggregation: 'Total'
    operator: 'GreaterThan'
    threshold: 0
  }
  {
    suffix: 'failing'
    description: 'gridfan does not take what Event Grid delivers. Event Grid repeats it for up to a day.'
    severity: 2
    frequency: 'PT5M'
    window: 'PT15M'
    metric: 'DeliveryAttemptFailCount'
    dimensions: []
    aggregation: 'Total'
    operator: 'GreaterThan'
    threshold: 10
  }
]
var appRules = [
  {
    suffix: '5xx'
    description: 'gridfan tells senders to come back: the broker is away, the storage is full, or there is too much at once.'
    severity: 1
    frequency: 'PT1M'
    window: 'PT5M'
    metric: 'Requests'
    dimensions: [{ name: 'statusCodeCategory', operator: 'Include', values: ['5xx'] }]
    aggregation: 'Total'
    operator: 'GreaterThan'
    threshold: 5
  }
  {
    suffix: 'restarts'
    description: 'Replicas of gridfan end and are started again.'
    severity: 2
    frequency: 'PT5M'
    window: 'PT15M'
    metric: 'RestartCount'
    dimensions: []
    aggregation: 'Maximum'
    operator: 'GreaterThan'
    threshold: 3
  }
]
var nodeRules = [
  {
    suffix: 'away'
    description: 'A NATS node does not run. With another one away, too, no event is accepted.'
    severity: 1
    frequency: 'PT1M'
    window: 'PT5M'
    metric: 'VmAvailabilityMetric'
    dimensions: []
    aggregation: 'Average'
    operator: 'LessThan'
    threshold: 1
  }
  {
    suffix: 'disk'
    description: 'The data disk does nearly as many operations as it was bought for: raise natsDiskIops. How full the streams are, gridfan tells (storage.filling).'
    severity: 2
    frequency: 'PT5M'
    window: 'PT15M'
    metric: 'Data Disk IOPS Consumed Percentage'
    dimensions: []
    aggregation: 'Average'
    operator: 'GreaterThan'
    threshold: 90
  }
]

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: name
  location: 'global'
  tags: tags
  properties: {
    groupShortName: 'gridfan'
    enabled: true
    emailReceivers: [
      for (address, i) in emailAddresses: { name: 'mail-${i}', emailAddress: address, useCommonAlertSchema: true }
    ]
  }
}

resource topicAlerts 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for i in range(0, length(topicIds) * length(topicRules)): {
    name: 'alert-topic-${(i / length(topicRules)) + 1}-${topicRules[i % length(topicRules)].suffix}'
    location: 'global'
    tags: tags
    properties: {
      description: topicRules[i % length(topicRules)].description
      severity: topicRules[i % length(topicRules)].severity
      enabled: true
      scopes: [topicIds[i / length(topicRules)]]
      evaluationFrequency: topicRules[i % length(topicRules)].frequency
      windowSize: topicRules[i % length(topicRules)].window
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: topicRules[i % length(topicRules)].suffix
            metricNamespace: 'Microsoft.EventGrid/topics'
            metricName: topicRules[i % length(topicRules)].metric
            dimensions: topicRules[i % length(topicRules)].dimensions
            timeAggregation: topicRules[i % length(topicRules)].aggregation
            operator: topicRules[i % length(topicRules)].operator
            threshold: topicRules[i % length(topicRules)].threshold
          }
        ]
      }
      actions: [{ actionGroupId: people.id }]
    }
  }
]

resource appAlerts 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for i in range(0, length(appIds) * length(appRules)): {
    name: 'alert-app-${(i / length(appRules)) + 1}-${appRules[i % length(appRules)].suffix}'
    location: 'global'
    tags: tags
    properties: {
      description: appRules[i % length(appRules)].description
      severity: appRules[i % length(appRules)].severity
      enabled: true
      scopes: [appIds[i / length(appRules)]]
      evaluationFrequency: appRules[i % length(appRules)].frequency
      windowSize: appRules[i % length(appRules)].window
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: appRules[i % length(appRules)].suffix
            metricNamespace: 'Microsoft.App/containerapps'
            metricName: appRules[i % length(appRules)].metric
            dimensions: appRules[i % length(appRules)].dimensions
            timeAggregation: appRules[i % length(appRules)].aggregation
            operator: appRules[i % length(appRules)].operator
            threshold: appRules[i % length(appRules)].threshold
          }
        ]
      }
      actions: [{ actionGroupId: people.id }]
    }
  }
]

resource nodeAlerts 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for i in range(0, length(nodeIds) * length(nodeRules)): {
    name: 'alert-node-${(i / length(nodeRules)) + 1}-${nodeRules[i % length(nodeRules)].suffix}'
    location: 'global'
    tags: tags
    properties: {
      description: nodeRules[i % length(nodeRules)].description
      severity: nodeRules[i % length(nodeRules)].severity
      enabled: true
      scopes: [nodeIds[i / length(nodeRules)]]
      evaluationFrequency: nodeRules[i % length(nodeRules)].frequency
      windowSize: nodeRules[i % length(nodeRules)].window
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: nodeRules[i % length(nodeRules)].suffix
            metricNamespace: 'Microsoft.Compute/virtualMachines'
            metricName: nodeRules[i % length(nodeRules)].metric
            dimensions: nodeRules[i % length(nodeRules)].dimensions
            timeAggregation: nodeRules[i % length(nodeRules)].aggregation
            operator: nodeRules[i % length(nodeRules)].operator
            threshold: nodeRules[i % length(nodeRules)].threshold
          }
        ]
      }
      actions: [{ actionGroupId: people.id }]
    }
  }
]

// The table is made with the first line of log, so queries cannot be checked before.
resource seriousLines 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: 'alert-gridfan-serious'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: 'gridfan: storage, broker, books, sources'
    description: 'Streams fill up, the store was opened anew, books do not balance, or a source cannot be read: gridfan status tells more.'
    severity: 1
    enabled: true
    scopes: [workspaceId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    autoMitigate: true
    skipQueryValidation: true
    criteria: {
      allOf: [
        {
          query: '${lines} | where what in (${join(map(serious, what => '"${what}"'), ', ')}) | summarize times = count() by what, about'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [
            { name: 'what', operator: 'Include', values: ['*'] }
            { name: 'about', operator: 'Include', values: ['*'] }
          ]
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: [people.id] }
  }
}

resource behindLines 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: 'alert-gridfan-subscribers'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: 'gridfan: subscribers that fall behind'
    description: 'A breaker opened, or a subscriber\'s backlog, dead letters or retries are at their limit: gridfan subscribers show tells more.'
    severity: 2
    enabled: true
    scopes: [workspaceId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    autoMitigate: true
    skipQueryValidation: true
    criteria: {
      allOf: [
        {
          query: '${lines} | where what in (${join(map(behind, what => '"${what}"'), ', ')}) | summarize times = count() by what, about'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [
            { name: 'what', operator: 'Include', values: ['*'] }
            { name: 'about', operator: 'Include', values: ['*'] }
          ]
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: [people.id] }
  }
}

@description('Resource id of the action group.')
output resourceId string = people.id

@description('Name of the action group.')
output name string = people.name
