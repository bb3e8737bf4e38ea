metadata name = 'gridfan event subscriptions'
metadata description = 'What Event Grid delivers to gridfan. Deploy it when gridfan answers (wait-ready.sh): making or updating an event subscription has Event Grid ask the endpoint whether it wants events.'

targetScope = 'resourceGroup'

import { subscriptionType } from 'modules/types.bicep'

@description('Required. Name of the app that lets events in: ROUTER_NAME of main.bicep.')
@minLength(2)
@maxLength(32)
param routerName string

@description('Optional. Host by which gridfan is reached, where a gateway is in front of it. By default that of the app.')
param host string = ''

@description('Optional. Directory of the app registration.')
param tenantId string = tenant().tenantId

@description('Required. Client id or Application ID URI of the app registration that stands for gridfan\'s webhook: Event Grid shows a token for it.')
@minLength(1)
param webhookAppIdOrUri string

@description('Required. Name of the storage account for what cannot be delivered: DEADLETTER_STORAGE_NAME of main.bicep.')
@minLength(3)
@maxLength(24)
param deadLetterStorageName string

@description('Required. What the names of the containers in it begin with: DEADLETTER_CONTAINER_PREFIX of main.bicep. The source\'s name follows.')
@minLength(1)
@maxLength(40)
param deadLetterContainerPrefix string

@description('Required. What is delivered to which source.')
param subscriptions subscriptionType[]

resource router 'Microsoft.App/containerApps@2026-01-01' existing = {
  name: routerName
}

resource deadLetterStorage 'Microsoft.Storage/storageAccounts@2025-06-01' existing = {
  name: deadLetterStorageName
}

resource topics 'Microsoft.EventGrid/topics@2025-02-15' existing = [
  for entry in subscriptions: {
    name: entry.topicName
  }
]

resource eventSubscriptions 'Microsoft.EventGrid/topics/eventSubscriptions@2025-02-15' = [
  for (entry, i) in subscriptions: {
    parent: topics[i]
    name: entry.name
    properties: {
      destination: {
        endpointType: 'WebHook'
        properties: {
          endpointUrl: 'https://${empty(host) ? router.properties.configuration.ingress.fqdn : host}/ingress/${entry.source}'
          azureActiveDirectoryTenantId: tenantId
          azureActiveDirectoryApplicationIdOrUri: webhookAppIdOrUri
          minimumTlsVersionAllowed: '1.2'
          maxEventsPerBatch: entry.?maxEventsPerBatch ?? 100
          preferredBatchSizeInKilobytes: entry.?preferredBatchSizeInKilobytes ?? 512
        }
      }
      eventDeliverySchema: 'CloudEventSchemaV1_0'
      filter: {
        subjectBeginsWith: entry.?subjectBeginsWith ?? ''
        subjectEndsWith: entry.?subjectEndsWith ?? ''
        includedEventTypes: entry.?includedEventTypes
        isSubjectCaseSensitive: false
        enableAdvancedFilteringOnArrays: true
      }
      // As long and as often as Event Grid does at most.
      retryPolicy: { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
      deadLetterWithResourceIdentity: {
        identity: { type: 'SystemAssigned' }
        deadLetterDestination: {
          endpointType: 'StorageBlob'
          properties: {
            resourceId: deadLetterStorage.id
            blobContainerName: '${deadLetterContainerPrefix}${entry.source}'
          }
        }
      }
    }
  }
]

@description('Resource ids of the event subscriptions.')
output EVENT_SUBSCRIPTION_IDS string[] = [for i in range(0, length(subscriptions)): eventSubscriptions[i].id]
