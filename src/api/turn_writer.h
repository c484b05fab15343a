// A response that counts against its client's limits until it is finished: the turn is given back before the last bytes
// go out, so that a client that asks again at once finds its place free.
// Thread: as http::ResponseWriter.
#pragma once
#include <memory>
#include <utility>

#include "http/server.h"

namespace ekiben::api {

class TurnWriter final : public http::ResponseWriter {
 public:
  TurnWriter(std::shared_ptr<http::ResponseWriter> writer, std::shared_ptr<const void> turn)
      : writer_(std::move(writer)), turn_(std::move(turn)) {}

  void Send(int status, const http::Headers& headers, std::string_view body) override {
    turn_.reset();
    writer_->Send(status, headers, body);
  }
  void Start(int status, const http::Headers& headers) override { writer_->Start(status, headers); }
  void Write(std::string_view chunk) override { writer_->Write(chunk); }
  void Finish() override {
    turn_.reset();
    writer_->Finish();
  }
  void OnClosed(std::function<void()> callback) override { writer_->OnClosed(std::move(callback)); }
  void OnStartTimeout(Nanos timeout, std::function<void()> callback) override {
    writer_->OnStartTimeout(timeout, std::move(callback));
  }
  bool closed() const override { return writer_->closed(); }

 private:
  const std::shared_ptr<http::ResponseWriter> writer_;
  std::shared_ptr<const void> turn_;
};

}  // namespace ekiben::api
