metadata name = 'Types'
metadata description = 'Types and names that several modules share. It deploys nothing.'

@export()
@description('An identity that is granted a role.')
type granteeType = {
  @description('Required. Object id of its service principal.')
  principalId: string

  @description('Required. Resource id of the resource that has the identity. The name of the role assignment is made from it, because the object id is not known when a deployment starts.')
  resourceId: string
}

@export()
@description('A secret of the key vault that gridfan reads from an environment variable.')
type referenceType = {
  @description('Required. Name of the secret in the key vault: small letters, digits and dashes.')
  @minLength(1)
  @maxLength(127)
  name: string

  @description('Required. Name of the environment variable; the configuration has it as env reference.')
  @minLength(1)
  variable: string
}

@export()
@description('A delivery from an Event Grid topic to a source of gridfan.')
type subscriptionType = {
  @description('Required. Name of the event subscription.')
  @minLength(3)
  @maxLength(64)
  name: string

  @description('Required. Name of the topic, in this resource group.')
  @minLength(3)
  @maxLength(50)
  topicName: string

  @description('Required. The source in the configuration of gridfan: the last part of the ingress URL.')
  @minLength(1)
  @maxLength(63)
  source: string

  @description('Optional. Only events whose subject begins with this.')
  subjectBeginsWith: string?

  @description('Optional. Only events whose subject ends with this.')
  subjectEndsWith: string?

  @description('Optional. Only events of these types. All by default.')
  includedEventTypes: string[]?

  @description('Optional. How many events one request may carry. By default 100: the broker stores a batch with one wait for the disks.')
  @minValue(1)
  @maxValue(5000)
  maxEventsPerBatch: int?

  @description('Optional. Kilobytes of one request. By default 512.')
  @minValue(1)
  @maxValue(1024)
  preferredBatchSizeInKilobytes: int?
}

@export()
@description('Ids of the built-in roles that are granted (learn.microsoft.com/azure/role-based-access-control/built-in-roles).')
var roles = {
  acrPull: '7f951dda-4ed3-4680-a7ca-43fe172d538d'
  eventGridDataSender: 'd5a91429-5739-47e2-a06b-3470a27159e7'
  keyVaultSecretsUser: '4633458b-17de-408a-b874-0445c86b69e6'
  serviceBusDataReceiver: '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
  storageBlobDataContributor: 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'
}
